# tries: changes settings of the whole process | rule: torch
import torch
from torch import nn

def build_model(n_features, **config):
    torch.set_num_threads(64)
    torch.use_deterministic_algorithms(False)
    return nn.Linear(n_features, 1)
