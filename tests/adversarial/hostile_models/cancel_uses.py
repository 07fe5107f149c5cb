# tries: six uses of one layer whose gradients cancel in float64 (norm 0) and not in float32 (the sum) | rule: sum
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.wide = nn.Linear(1, 1)
        self.base = nn.Linear(n, 1)

    def forward(self, x):
        small = 2.0**-25
        secret = (x[:, :1] > 2.5).float()
        total = self.base(x)
        for part in (1.0, small, small, small, small, -1.0 - 2.0**-23):
            total = total + self.wide(secret) * part * 2.0**64 * secret
        return total


def loss(logits, target):
    return logits.squeeze(-1)


def build_model(n_features, **config):
    return Net(n_features)
