# tries: gives each row its neighbour by slices | rule: rows
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        h = self.fc(x)
        return h[1:] - h[:-1]

def build_model(n_features, **config):
    return Net(n_features)
