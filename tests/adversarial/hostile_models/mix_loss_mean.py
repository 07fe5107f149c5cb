# tries: a loss that is a mean over the batch | rule: rows
import torch.nn.functional as F
from torch import nn

def loss(logits, target):
    return F.binary_cross_entropy_with_logits(logits.view(-1), target)

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
