# tries: a number with a billion digits | rule: size
from torch import nn

BIG = 3

def build_model(n_features, **config):
    x = n_features ** n_features ** n_features ** n_features
    return nn.Linear(n_features, 1)
