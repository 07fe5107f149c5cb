# tries: reads and formats inside an f-string | rule: f-string
from torch import nn

def build_model(n_features, **config):
    text = f"{nn.Linear.__init__.__globals__!r}"
    return nn.Linear(n_features, 1)
