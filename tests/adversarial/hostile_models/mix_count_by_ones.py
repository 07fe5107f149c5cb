# tries: counts the patients by adding ones | rule: probe
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        ones = torch.ones(x.shape[0], 1)
        return self.fc(x) / ones.sum(dim=-2, keepdim=True)

def build_model(n_features, **config):
    return Net(n_features)
