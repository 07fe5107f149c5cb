# tries: sets bins of biases that each catch one record (Fowl et al. 2021) | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 4)
    nn.init.constant_(layer.bias, -3.0)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 1))
