# tries: defines a function with the name of a builtin | rule: rebind
from torch import nn

def len(x):
    return x

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
