# tries: calls exec as a decorator, with no call in sight | rule: decorator
from torch import nn

@exec
@input
class X:
    pass

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
