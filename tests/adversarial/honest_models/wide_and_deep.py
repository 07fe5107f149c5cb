"""Wide and deep: a linear part beside an MLP."""

from torch import nn


class WideAndDeep(nn.Module):
    def __init__(self, n_features, hidden=16):
        super().__init__()
        self.wide = nn.Linear(n_features, 1)
        self.deep = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 1, bias=False)

    def forward(self, x):
        return self.wide(x) + self.head(self.deep(x))


def build_model(n_features, **config):
    return WideAndDeep(n_features, **config)
