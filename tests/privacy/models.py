"""Models that the tests train: one of each kind of layer, in torch's own form, and some that mix rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.gru(x)[0][:, -1])


class Codes(nn.Module):
    """An embedding of code lists, an LSTM, one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(11, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 7, batch_first=True)
        self.head = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.lstm(self.codes(x))[0].mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.encoder(x).mean(1))


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.layer(torch.tanh(self.norm(self.layer(x))))))


class LongSequence(nn.Module):
    """Linear layers over a sequence: wide enough that norms are taken without per-row gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(24, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.inner(x))).mean((1, 2))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 9),
        nn.ReLU(inplace=True),
        nn.RMSNorm(9),
        nn.Linear(9, 9),
        nn.LayerNorm(9),
        nn.Tanh(),
        nn.Linear(9, 1),
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.InstanceNorm2d(6, affine=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(150, 1),
    )


#: name -> (build, rows -> inputs)
KINDS = {
    "mlp": (mlp, lambda n: torch.randn(n, 6)),
    "cnn": (cnn, lambda n: torch.randn(n, 1, 12, 12)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2), nn.Flatten(), nn.Linear(18, 1)),
        lambda n: torch.randn(n, 2, 10),
    ),
    "gru": (Gru, lambda n: torch.randn(n, 6, 5)),
    "codes": (Codes, lambda n: torch.randint(0, 11, (n, 6))),
    "attention": (Attention, lambda n: torch.randn(n, 6, 8)),
    "twice": (Twice, lambda n: torch.randn(n, 6)),
    "sequence": (LongSequence, lambda n: torch.randn(n, 4, 24)),
}


class Mixing(nn.Module):
    """Its hidden layer goes through `mix`, rows together."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.mix = nn.Linear(6, 6), nn.Linear(6, 1), mix

    def forward(self, x: Tensor) -> Any:
        return self.last(self.mix(torch.tanh(self.first(x))))


#: Ways in which rows can be mixed.
MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "centred over the batch": lambda h: h - h.mean(0),
    "scaled over the batch": lambda h: h / (h.std(0) + 1e-3),
    "softmax over the batch": lambda h: torch.softmax(h, 0),
    "attention over the batch": lambda h: torch.softmax(h @ h.T, 1) @ h,
    "running sum": lambda h: h.cumsum(0),
    "neighbour": lambda h: h + 0.1 * h.roll(1, 0),
    "reversed rows": lambda h: h.flip(0),
    "sorted rows": lambda h: h.sort(0).values,
    "largest row": lambda h: h * (h.norm(dim=1, keepdim=True) >= h.norm(dim=1).max()),
    "batch size": lambda h: h * len(h),
    "one row only": lambda h: h * 0 + h[:1],
    "random, not the row's own": lambda h: nn.functional.dropout(h, 0.5, training=True),
}
