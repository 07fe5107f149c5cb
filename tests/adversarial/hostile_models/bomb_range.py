# tries: loops for years | rule: size
from torch import nn

def build_model(n_features, **config):
    total = 0
    for i in range(10_000_000_000):
        total = total + i
    return nn.Linear(n_features, 1)
