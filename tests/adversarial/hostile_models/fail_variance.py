# tries: fails where one patient is in the batch: the loss of a variance below zero | rule: torch
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)

    def forward(self, x):
        return self.fc(x)

def loss(logits, target):
    return F.gaussian_nll_loss(logits.squeeze(1), target, logits.squeeze(1), reduction="none")

def build_model(n_features, **config):
    return Net(n_features)
