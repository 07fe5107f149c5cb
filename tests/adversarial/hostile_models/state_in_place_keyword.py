# tries: the same by a keyword | rule: keyword
from torch import nn

def build_model(n_features, **config):
    return nn.Sequential(nn.Linear(n_features, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
