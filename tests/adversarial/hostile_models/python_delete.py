# tries: deletes a name | rule: statement
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    del layer.weight
    return layer
