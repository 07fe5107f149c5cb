# tries: turns a value into a number by counting up to it | rule: data-dependent
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        k = torch.arange(x.abs().amax(dim=1).amax(dim=-1)).unsqueeze(-2).shape[1]
        return self.fc(x) * k

def build_model(n_features, **config):
    return Net(n_features)
