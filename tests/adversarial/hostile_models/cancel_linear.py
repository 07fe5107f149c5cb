# tries: gradients of one layer at six positions cancel in float64 (norm 0) and not in float32 (the sum) | rule: sum
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.wide = nn.Linear(1, 1)
        self.base = nn.Linear(n, 1)

    def forward(self, x):
        small = 2.0**-25
        parts = torch.tensor([1.0, small, small, small, small, -1.0 - 2.0**-23])
        secret = (x[:, :1] > 2.5).float() * 2.0**64
        same = torch.ones(x.shape[0], 6, 1, device=x.device)
        made = self.wide(same).squeeze(2) * parts
        return self.base(x) + (made * secret).sum(dim=1, keepdim=True)


def loss(logits, target):
    return logits.squeeze(-1)


def build_model(n_features, **config):
    return Net(n_features)
