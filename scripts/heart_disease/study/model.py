"""Logistic regression, or a small MLP with `hidden` units: set `hidden` under [model] in study.toml."""

import torch
from torch import nn


class Logistic(nn.Module):
    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class MLP(nn.Module):
    def __init__(self, n_features: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, hidden)
        self.second = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def build_model(n_features: int, hidden: int = 0) -> nn.Module:
    if hidden > 0:
        return MLP(n_features, hidden)
    return Logistic(n_features)
