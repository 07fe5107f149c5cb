"""Rows as a model takes them: one input or several, by position or by name, and a loss for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.generic]
#: One array, or several for a model with several inputs (by position or by name); rows first in each.
Inputs = Array | tuple[Array, ...] | Mapping[str, Array] | Mapping[str | int, Tensor]
#: `loss(logits, target)` gives one loss per row, shape (n,).
Loss = Callable[[Tensor, Tensor], Tensor]
#: Inputs as tensors, by position (0, 1, ...) or by name.
Tensors = Mapping[str | int, Tensor]


def binary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the default loss: binary cross-entropy of each row, shape (n,); logits (n,) or (n, 1), target 0/1 (n,)."""
    return nn.functional.binary_cross_entropy_with_logits(
        logits.reshape(len(target)), target.to(logits.dtype), reduction="none"
    )


def tensors(x: Inputs) -> dict[str | int, Tensor]:
    """Return inputs of shape (n, ...) as tensors of that shape, by position or by name; tensors stay as they are."""
    named: dict[str | int, Array | Tensor] = {}
    if isinstance(x, Mapping):
        named.update(x)
    else:
        named.update(enumerate(x if isinstance(x, tuple) else (x,)))
    return {name: tensor(part) for name, part in named.items()}


def tensor(part: Array | Tensor) -> Tensor:
    """Return one array as a tensor of the same shape, without a copy where that is possible."""
    return part if isinstance(part, Tensor) else torch.from_numpy(np.ascontiguousarray(part))


def take(inputs: Tensors, rows: Tensor) -> dict[str | int, Tensor]:
    """Return `rows`, shape (k,), of each input of shape (n, ...): shape (k, ...)."""
    return {name: part[rows] for name, part in inputs.items()}


def slots_of(inputs: Tensors, rows: Tensor, slots: int) -> dict[str | int, Tensor]:
    """Return the given rows of each input in the first of `slots` places, zeros in the rest: shape (slots, ...)."""
    return {name: slots_part(part, rows, slots) for name, part in inputs.items()}


def slots_part(part: Tensor, rows: Tensor, slots: int) -> Tensor:
    """Do as `slots_of`, for one tensor: shape (slots, ...)."""
    padded = part.new_zeros((slots, *part.shape[1:]))
    padded[: len(rows)] = part[rows]
    return padded


def forward(module: nn.Module, inputs: Tensors) -> Tensor:
    """Call `module` with numbered inputs by position and named ones by name: inputs (n, ...), result (n, ...)."""
    by_position = [part for name, part in inputs.items() if isinstance(name, int)]
    by_name = {name: part for name, part in inputs.items() if isinstance(name, str)}
    output: Tensor = module(*by_position, **by_name)
    return output
