"""Two towers on two halves of the features, joined by cosine similarity; squared error on probabilities."""

import torch
import torch.nn.functional as F
from torch import nn


class Tower(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width_in, width), nn.Mish(), nn.RMSNorm(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class TwoTowers(nn.Module):
    def __init__(self, n_features: int, width: int = 8) -> None:
        super().__init__()
        self.split_at = n_features // 2
        self.left = Tower(self.split_at, width)
        self.right = Tower(n_features - self.split_at, width)
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x[:, : self.split_at]), self.right(x[:, self.split_at :])
        alike = F.cosine_similarity(left, right, dim=1).unsqueeze(1)
        sizes = torch.stack([left.norm(dim=1), right.norm(dim=1)], dim=1)
        return self.head(torch.cat([alike, sizes], dim=1)).squeeze(1)


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(torch.sigmoid(logits), target, reduction="none")


def build_model(n_features: int, **config) -> nn.Module:
    return TwoTowers(n_features)
