# tries: the same as a layer without an axis | rule: rows
from torch import nn

def build_model(n_features, **config):
    return nn.Sequential(nn.Linear(n_features, 1), nn.Softmax())
