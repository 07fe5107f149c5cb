# tries: puts code between a weight and its layer | rule: import
from torch import nn
from torch.nn.utils import parametrize

def build_model(n_features, **config):
    layer = nn.Linear(n_features, 1)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer
