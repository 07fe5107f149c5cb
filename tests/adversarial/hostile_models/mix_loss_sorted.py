# tries: a loss on ranks in the batch | rule: rows
import torch
from torch import nn

def loss(logits, target):
    return logits.view(-1).cumsum(0) * target

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
