# tries: writes its own backward pass | rule: base
import torch
from torch import nn

class Leak(torch.autograd.Function):
    def forward(self, x):
        return x

    def backward(self, grad):
        return grad * 1000

def build_model(n_features, **config):
    return nn.Linear(n_features, 1)
