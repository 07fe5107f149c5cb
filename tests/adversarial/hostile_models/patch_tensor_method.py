# tries: replaces a method of all tensors | rule: attribute-write
import torch
from torch import nn

def nothing(self, other):
    return self

def build_model(n_features, **config):
    torch.Tensor.sum = nothing
    return nn.Linear(n_features, 1)
