# tries: gradients of one code at six positions cancel in float64 (norm 0) and not in float32 (the sum) | rule: sum
import torch
from torch import nn


class Net(nn.Module):
    """One secret row moves the table's gradient by 2 ** 43 while its measured norm stays small."""

    def __init__(self, n):
        super().__init__()
        self.table = nn.Embedding(2, 1)
        self.base = nn.Linear(n, 1)

    def forward(self, x):
        ids = torch.zeros_like(x[:, :1]).long().repeat(1, 6)
        small = 2.0 ** -25
        parts = torch.tensor([1.0, small, small, small, small, -1.0 - 2.0 ** -23])
        secret = (x[:, :1] > 2.5).float() * 2.0 ** 64
        e = self.table(ids).squeeze(2) * parts
        return self.base(x) + (e * secret).sum(dim=1, keepdim=True)


def loss(logits, target):
    return logits.squeeze(-1)


def build_model(n_features, **config):
    return Net(n_features)
