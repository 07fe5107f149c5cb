# tries: uses a weight outside its layer, past the clipping | rule: attribute
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return torch.matmul(x, self.fc.weight.transpose(-2, -1))

def build_model(n_features, **config):
    return Net(n_features)
