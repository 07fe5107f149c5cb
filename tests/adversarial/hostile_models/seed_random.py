# tries: seeds Python's and numpy's generators | rule: import
import random

import numpy

random.seed(0)
numpy.random.seed(0)

def build_model(n_features, **config):
    return None
