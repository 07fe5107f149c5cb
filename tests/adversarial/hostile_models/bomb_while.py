# tries: never ends | rule: statement
from torch import nn

def build_model(n_features, **config):
    while True:
        pass
