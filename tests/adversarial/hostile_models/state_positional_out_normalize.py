# tries: keeps rows in a tensor on self, out given by position | rule: in-place
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.seen = torch.zeros(1)

    def forward(self, x):
        F.normalize(x - 3.0, 2.0, 1, 1e6, self.seen)
        return self.fc(x)

def build_model(n_features, **config):
    return Net(n_features)
