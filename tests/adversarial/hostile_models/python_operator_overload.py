# tries: hides an effect in an operator | rule: dunder
from torch import nn

class Box(nn.Module):
    def __getitem__(self, key):
        return key

    def __add__(self, other):
        return other

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
