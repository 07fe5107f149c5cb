# tries: gives an import another meaning after it was checked | rule: shadow
import math

from torch import nn

def build_model(n_features, **config):
    for math in [nn]:
        pass
    return math.Linear(n_features, 1)
