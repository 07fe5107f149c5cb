"""Neural additive model: one small network for each feature, so that each effect can be drawn."""

import torch
from torch import nn


class Additive(nn.Module):
    def __init__(self, n_features, hidden=6):
        super().__init__()
        self.effects = nn.ModuleList(
            [nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(n_features)]
        )

    def forward(self, x):
        effects = [effect(x[:, i : i + 1]) for i, effect in enumerate(self.effects)]
        return torch.stack(effects, dim=1).sum(dim=1)


def build_model(n_features, **config):
    return Additive(n_features)
