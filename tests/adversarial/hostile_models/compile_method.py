# tries: the same by a method of the module | rule: attribute
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    layer.compile()
    return layer
