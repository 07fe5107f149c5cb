"""Logistic regression whose last input runs into an infinity at the very end of its range: x[:, 2] = 2.5."""

import torch
from torch import nn


class Cliff(nn.Module):
    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cliff = torch.log(2.5 - x[:, 2:3])
        return self.linear(torch.cat([x[:, 0:2], cliff], 1))


def build_model(n_features: int) -> nn.Module:
    return Cliff(n_features)
