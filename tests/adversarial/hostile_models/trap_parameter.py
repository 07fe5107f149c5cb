# tries: keeps a free weight outside the layers | rule: torch
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.bins = nn.Parameter(torch.linspace(-3, 3, 64))
        self.fc = nn.Linear(n, 64)

    def forward(self, x):
        return self.fc(x) - self.bins

def build_model(n_features, **config):
    return Net(n_features)
