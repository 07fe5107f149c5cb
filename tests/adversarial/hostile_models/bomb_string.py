# tries: a string of gigabytes | rule: size
from torch import nn

def build_model(n_features, **config):
    text = "a" * 100_000_000
    return nn.Linear(n_features, 1)
