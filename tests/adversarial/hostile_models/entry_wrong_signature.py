# tries: a build_model that needs what nobody gives | rule: build-model
from torch import nn

def build_model(model_file, n_features):
    return nn.Linear(n_features, 1)
