# tries: sees inputs by a forward hook | rule: attribute
from torch import nn

def spy(module, inputs, output):
    return output

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    layer.register_forward_hook(spy)
    return layer
