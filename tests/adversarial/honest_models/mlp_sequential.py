"""Multi-layer perceptron as a Sequential, with depth and width from the study."""

from torch import nn


def build_model(n_features, hidden=32, depth=2, **config):
    layers = []
    width = n_features
    for _ in range(depth):
        layers.append(nn.Linear(width, hidden))
        layers.append(nn.ReLU())
        width = hidden
    layers.append(nn.Linear(width, 1))
    return nn.Sequential(*layers)
