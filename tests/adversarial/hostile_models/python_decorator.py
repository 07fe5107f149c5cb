# tries: runs code by a decorator | rule: decorator
from torch import nn

def run(f):
    return f

@run
class Net(nn.Module):
    pass

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
