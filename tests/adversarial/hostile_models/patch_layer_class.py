# tries: replaces the forward of every linear layer | rule: attribute-write
from torch import nn

def wide(self, x):
    return x

def build_model(n_features, **config):
    nn.Linear.forward = wide
    return nn.Linear(n_features, 1)
