# tries: keeps rows in a closure | rule: statement
from torch import nn

def build_model(n_features, **config):
    kept = []

    def keep(x):
        kept.append(x)
        return x

    return nn.Linear(n_features, 1)
