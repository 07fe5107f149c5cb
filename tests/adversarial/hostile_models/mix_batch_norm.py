# tries: batch statistics | rule: torch
from torch import nn

def build_model(n_features, **config):
    return nn.Sequential(nn.Linear(n_features, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
