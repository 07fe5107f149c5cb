# tries: a loss that also takes the model | rule: loss
from torch import nn

def loss(logits, target, model):
    return logits

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
