# tries: binds a name inside an expression | rule: expression
from torch import nn

def build_model(n_features, **config):
    return (layer := nn.Linear)(n_features, 1)
