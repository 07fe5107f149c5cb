# tries: a ranking loss over pairs of patients | rule: rows
import torch
from torch import nn

def loss(logits, target):
    pairs = logits - logits.transpose(0, 1)
    return torch.relu(1 - pairs).mean(dim=1)

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
