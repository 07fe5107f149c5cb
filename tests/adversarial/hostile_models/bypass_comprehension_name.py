# tries: makes a builtin look like a local name by a comprehension | rule: shadow
from torch import nn

def build_model(n_features, **config):
    numbers = [open for open in (1, 2)]
    handle = open("secrets")
    return nn.Linear(n_features, 1)
