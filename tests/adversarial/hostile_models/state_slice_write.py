# tries: writes rows into a slice of a kept tensor | rule: in-place
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = torch.zeros(8, n)

    def forward(self, x):
        self.kept[:, :] = x
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
