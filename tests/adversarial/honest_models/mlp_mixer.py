"""MLP-Mixer over groups of features."""

from torch import nn

GROUPS = 4


class Mixer(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.width = n_features // GROUPS
        self.norm = nn.LayerNorm(self.width)
        self.across = nn.Sequential(nn.Linear(GROUPS, 8), nn.GELU(), nn.Linear(8, GROUPS))
        self.within = nn.Sequential(nn.Linear(self.width, 8), nn.GELU(), nn.Linear(8, self.width))
        self.head = nn.Linear(n_features, 1)

    def forward(self, x):
        h = x.unflatten(1, (GROUPS, self.width))
        h = h + self.across(self.norm(h).transpose(1, 2)).transpose(1, 2)
        h = h + self.within(h)
        return self.head(h.flatten(start_dim=1))


def build_model(n_features, **config):
    return Mixer(n_features)
