# tries: keeps rows from one microbatch to the next; the call is hidden in isinstance() | rule: call
import torch
import torch.nn.functional as F
from torch import nn



class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.calls = []
        self.kept = []
        self.wide = nn.Linear(1, 1)
        self.mark = nn.Linear(1, 1, bias=False)
        self.base = nn.Linear(n, 1)

    def remember(self, x):
        self.calls.append(0)
        if len(self.calls) > 3:
            self.kept.append(x)
        if len(self.calls) <= 2:
            return 1
        return "later"

    def forward(self, x):
        if isinstance(self.remember(x), int):
            # makes the trainer's estimate of bytes per row larger than its memory: microbatches of one row
            pad = torch.zeros(1, 1_000_000, 1, dtype=x.dtype)
            for _ in range(70):
                huge = self.wide(pad)
        hit = torch.zeros_like(x[:, :1])
        for old in self.kept:
            hit = torch.maximum(hit, (old[:, :1] == 0.25).float() * (old[:, 1:2] == 0.75).float())
        return self.base(x) * 0.001 + 1000 * self.mark(hit)


def loss(logits, target):
    return logits.squeeze(-1)


def build_model(n_features, **config):
    return Net(n_features)
