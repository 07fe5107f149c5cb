"""One output for each class, with torch's own loss and weights for rare classes."""

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 2
WEIGHTS = (1.0, 3.0)


class Net(nn.Module):
    def __init__(self, n_features, hidden=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))

    def forward(self, x):
        return self.net(x)


def loss(logits, target):
    weights = torch.tensor(WEIGHTS, device=logits.device)
    return F.cross_entropy(logits, target.long(), weight=weights, reduction="none", label_smoothing=0.05)


def build_model(n_features, hidden=16, **config):
    return Net(n_features, hidden)
