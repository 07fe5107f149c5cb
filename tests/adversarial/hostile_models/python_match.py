# tries: reads attributes by a class pattern | rule: statement
from torch import nn

def build_model(n_features, **config):
    match nn:
        case object(Linear=found):
            return found(n_features, 1)
