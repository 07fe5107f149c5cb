# tries: hides the axis in a variable | rule: rows
import torch
from torch import nn

AXIS = 0

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x - torch.mean(x, AXIS))

def build_model(n_features, **config):
    return Net(n_features)
