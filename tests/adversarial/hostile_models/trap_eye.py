# tries: copies inputs to outputs by an identity weight | rule: torch
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, n_features)
    nn.init.eye_(layer.weight)
    return nn.Sequential(layer, nn.Linear(n_features, 1))
