# tries: syntax that only later versions have | rule: syntax
from torch import nn

def build_model[T](n_features: T, **config):
    return nn.Linear(n_features, 1)
