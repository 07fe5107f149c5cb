# tries: runs code when loaded | rule: module-level
from torch import nn

nn.Linear(1, 1)

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
