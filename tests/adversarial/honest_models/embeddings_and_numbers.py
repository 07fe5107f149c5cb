"""Multi-input MLP: the first columns are codes with embeddings, the others numbers."""

import torch
from torch import nn

CODES = (5, 7, 3)
WIDTH = 4


class MultiInput(nn.Module):
    def __init__(self, n_features, hidden=16):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(levels, WIDTH) for levels in CODES])
        numbers = n_features - len(CODES)
        self.numbers = nn.Sequential(nn.Linear(numbers, hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(hidden + len(CODES) * WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x):
        codes = x[:, : len(CODES)].abs().clamp(0, 2).long()
        parts = [self.numbers(x[:, len(CODES) :])]
        for column, embedding in enumerate(self.embeddings):
            parts.append(embedding(codes[:, column]))
        return self.head(torch.cat(parts, dim=1))


def build_model(n_features, **config):
    return MultiInput(n_features)
