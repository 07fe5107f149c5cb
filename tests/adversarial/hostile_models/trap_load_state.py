# tries: loads chosen weights | rule: attribute
import torch
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    layer.load_state_dict({"weight": torch.ones(1, n_features), "bias": torch.zeros(1)})
    return layer
