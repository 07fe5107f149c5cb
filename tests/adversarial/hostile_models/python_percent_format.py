# tries: calls __str__ by a formatting operator | rule: expression
from torch import nn

def build_model(n_features, **config):
    text = "%s" % nn.Linear(n_features, 1)
    return nn.Linear(n_features, 1)
