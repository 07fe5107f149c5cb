"""Small vision transformer: patches by a strided convolution."""

import math

import torch
from torch import nn


class ViT(nn.Module):
    def __init__(self, n_features, patch=2, width=8):
        super().__init__()
        self.side = int(math.sqrt(n_features))
        tokens = (self.side // patch) ** 2
        self.patches = nn.Conv2d(1, width, kernel_size=patch, stride=patch)
        self.place = nn.Embedding(tokens, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        image = x.reshape(-1, 1, self.side, self.side)
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1]).expand(x.shape[0], -1)
        tokens = self.block(tokens + self.place(places))
        return self.head(self.norm(tokens).mean(dim=1))


def build_model(n_features, **config):
    return ViT(n_features)
