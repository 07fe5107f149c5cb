# tries: hands code to the TorchScript compiler | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    return torch.jit.script(nn.Linear(n_features, 1))
