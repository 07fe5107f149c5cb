# tries: stores the mean of the rows in a buffer | rule: attribute
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.register_buffer("mean", torch.zeros(n))

    def forward(self, x):
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
