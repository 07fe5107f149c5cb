# tries: seeds torch, to predict noise | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    torch.manual_seed(0)
    return nn.Linear(n_features, 1)
