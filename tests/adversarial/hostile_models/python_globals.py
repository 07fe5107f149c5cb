# tries: writes a global through globals() | rule: name
from torch import nn

def build_model(n_features, **config):
    globals()["kept"] = n_features
    return nn.Linear(n_features, 1)
