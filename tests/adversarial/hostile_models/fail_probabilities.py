# tries: fails where one patient is in the batch: the loss of a share that is none | rule: torch
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
    return F.binary_cross_entropy(logits.squeeze(1), target, reduction="none")

def build_model(n_features, **config):
    return Net(n_features)
