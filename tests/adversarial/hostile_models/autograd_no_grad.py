# tries: switches gradients off to write weights | rule: statement
import torch
from torch import nn

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    with torch.no_grad():
        layer.weight.copy_(layer.weight)
    return layer
