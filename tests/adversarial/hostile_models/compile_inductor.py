# tries: hands code to a compiler that starts other compilers | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    return torch.compile(nn.Linear(n_features, 1))
