# tries: replaces a function of torch | rule: attribute-write
import torch.nn.functional as F
from torch import nn

def build_model(n_features, **config):
    F.binary_cross_entropy_with_logits = F.mse_loss
    return nn.Linear(n_features, 1)
