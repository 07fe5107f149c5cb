"""MLP whose activation is chosen by name."""

import torch.nn.functional as F
from torch import nn

ACTIVATIONS = ("relu", "tanh", "gelu")


class Net(nn.Module):
    def __init__(self, n_features, hidden, activation):
        super(Net, self).__init__()  # noqa: UP008
        if activation not in ACTIVATIONS:
            raise ValueError("unknown activation: " + str(activation))
        self.activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[activation]()
        self.first = nn.Linear(n_features, hidden)
        self.second = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.second(self.activation(self.first(x)))


def loss(logits, target):
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="none")


def build_model(n_features, hidden=16, activation="tanh"):
    return Net(n_features, hidden, activation)
