# tries: has no build_model | rule: build-model
from torch import nn

def make(n):
    return nn.Linear(n, 1)
