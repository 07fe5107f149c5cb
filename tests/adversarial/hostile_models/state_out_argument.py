# tries: writes rows into a kept tensor by out= | rule: keyword
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = torch.zeros(8, n)

    def forward(self, x):
        h = torch.exp(x, out=self.kept)
        return self.fc(h)

def build_model(n_features, **config):
    return Net(n_features)
