"""Factorization machine: linear part and pairwise interactions."""

from torch import nn


class FactorizationMachine(nn.Module):
    def __init__(self, n_features, factors=6):
        super().__init__()
        self.linear = nn.Linear(n_features, 1)
        self.factors = nn.Linear(n_features, factors, bias=False)
        self.squares = nn.Linear(n_features, factors, bias=False)

    def forward(self, x):
        pairs = self.factors(x).pow(2) - self.squares(x.square())
        return self.linear(x).squeeze(1) + 0.5 * pairs.sum(dim=1)


def build_model(n_features, **config):
    return FactorizationMachine(n_features)
