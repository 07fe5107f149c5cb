# tries: list.sort() on self in forward, no more | rule: attribute
import torch
import torch.nn.functional as F
from torch import nn



class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.order = [2.0, 1.0]
        self.base = nn.Linear(n, 1)

    def forward(self, x):
        self.order.sort()
        return self.base(x) * self.order[0]


def build_model(n_features, **config):
    return Net(n_features)
