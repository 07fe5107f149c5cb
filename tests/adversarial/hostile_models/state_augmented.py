# tries: adds into a kept tensor by += on a local name | rule: in-place
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = torch.zeros(n)

    def forward(self, x):
        kept = self.kept
        kept += x.amax(dim=1)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
