# tries: imports names that nobody listed | rule: import
from torch import *

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
