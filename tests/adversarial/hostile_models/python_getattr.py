# tries: names an attribute by a string | rule: name
from torch import nn

def build_model(n_features, **config):
    layer = getattr(nn, "Lin" + "ear")
    return layer(n_features, 1)
