"""Five classes, with the loss that everybody uses for them."""

import torch.nn as nn
import torch.nn.functional as F


class Classifier(nn.Module):
    def __init__(self, n_features, n_classes=5):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, n_classes))

    def forward(self, x):
        return self.net(x)


def loss(logits, target):
    return F.cross_entropy(logits, target.long(), reduction="none")


def build_model(n_features, n_classes=5, **config):
    return Classifier(n_features, n_classes)
