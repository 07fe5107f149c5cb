# tries: registers an operator of its own | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    torch.library.define("evil::op", "(Tensor x) -> Tensor")
    return nn.Linear(n_features, 1)
