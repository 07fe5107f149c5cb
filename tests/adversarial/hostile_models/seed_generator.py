# tries: brings a generator of its own | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    nn.init.normal_(layer.weight, generator=torch.Generator())
    return layer
