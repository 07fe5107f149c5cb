# tries: freezes all weights but those of the trap | rule: attribute
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    layer.requires_grad_(False)
    return layer
