"""Highway network."""

import torch
from torch import nn


class Highway(nn.Module):
    def __init__(self, n_features, layers=2):
        super().__init__()
        self.change = nn.ModuleList([nn.Linear(n_features, n_features) for _ in range(layers)])
        self.gate = nn.ModuleList([nn.Linear(n_features, n_features) for _ in range(layers)])
        self.head = nn.Linear(n_features, 1)

    def forward(self, x):
        for change, gate in zip(self.change, self.gate, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * torch.relu(change(x)) + (1 - share) * x
        return self.head(x)


def build_model(n_features, **config):
    return Highway(n_features)
