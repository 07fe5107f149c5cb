# tries: calls itself for ever | rule: recursion
from torch import nn

def deeper(n):
    return deeper(n + 1)

def build_model(n_features, **config):
    return deeper(n_features)
