# tries: writes an imprint layer into the weights (Boenisch et al. 2021) | rule: attribute-write
import torch
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 64)
    layer.weight.data = torch.ones(64, n_features)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(64, 1))
