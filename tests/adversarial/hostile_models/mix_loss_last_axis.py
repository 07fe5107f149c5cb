# tries: a loss along the last axis of a vector of rows | rule: probe
import torch.nn.functional as F
from torch import nn

def loss(logits, target):
    each = F.binary_cross_entropy_with_logits(logits.view(-1), target, reduction="none")
    return each * each.sum(dim=-1)

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
