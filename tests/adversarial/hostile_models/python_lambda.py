# tries: hides a function in an expression | rule: expression
from torch import nn

def build_model(n_features, **config):
    make = lambda n: nn.Linear(n, 1)
    return make(n_features)
