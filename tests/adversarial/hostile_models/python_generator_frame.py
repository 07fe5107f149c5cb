# tries: reaches builtins by the frame of a generator | rule: expression
from torch import nn

def build_model(n_features, **config):
    g = (g.gi_frame.f_back.f_builtins for _ in [1])
    return nn.Linear(n_features, 1)
