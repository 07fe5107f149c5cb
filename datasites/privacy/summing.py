"""Sums of many float64 terms whose error stays far below the terms: in blocks, and the blocks with their remainders.

Within a block, terms are added in whatever order the library likes; before more than a stated number of additions lie
on one coordinate, the block is folded into a running sum that keeps what each addition rounds away (Neumaier 1974). So
the error does not grow with the number of blocks, and the bound in `clipping` holds for any hospital's size.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Sum:
    """A sum of float64 tensors, all of the shape of `like`. Add to `block(...)` in place, then read `value()`."""

    def __init__(self, like: Tensor) -> None:
        self._block = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        self._additions = self._most = 0
        self._folded: tuple[Tensor, Tensor] | None = None

    def block(self, additions: int, most: int) -> Tensor:
        """Return a float64 tensor of `like`'s shape to add to in place, at most `additions` times on a coordinate.

        most: additions that may lie on one coordinate of a block, `additions` included.
        """
        if self._additions + additions > most or (self._additions and most != self._most):
            self._fold()
        self._additions, self._most = self._additions + additions, most
        return self._block

    def value(self) -> Tensor:
        """Return the sum of all that was added, float64 in the shape of a block."""
        if self._folded is None:
            return self._block.clone()
        self._fold()
        high, low = self._folded
        return high + low

    def _fold(self) -> None:
        if self._folded is None:
            self._folded = self._block, torch.zeros_like(self._block)
            self._block = torch.zeros_like(self._block)
        else:
            high, low = self._folded
            # Knuth's exact sum: `total` and what it rounds away add up to high + block.
            total = high + self._block
            part = total - high
            low += (high - (total - part)) + (self._block - part)
            self._folded = total, low
            self._block.zero_()
        self._additions = 0
