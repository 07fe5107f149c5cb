# tries: many loops inside one another | rule: loop
from torch import nn

def build_model(n_features, **config):
    for a in range(9999):
        for b in range(9999):
            for c in range(9999):
                for d in range(9999):
                    for e in range(9999):
                        nn.Linear(1, 1)
    return nn.Linear(n_features, 1)
