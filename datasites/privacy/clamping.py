"""Keeps a row's values from stopping a round: codes and classes out of range are clamped, and their row is marked.

An embedding's codes, `one_hot`'s classes and a loss's targets make torch raise when they lie out of range. Whether it
raises would depend on rows, and that a round stopped, or took longer, would be a message without noise. So while rows
run they are clamped into range here, and the row counts as nothing in training and with the lowest score in evaluation.
That changes no row whose values are in range, and a row is marked by its own values only.

`Clamping` is entered around a forward pass and a loss, on one batch or under one level of `torch.vmap`. Every other
operation that can raise by a row's values is refused at intake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from datasites.privacy.records import rows_of


class Clamping(TorchFunctionMode):
    """While entered, clamps as the top of this file says; `marked` tells which rows it did that to."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: list[tuple[Tensor, int | None]] = []

    def marked(self, rows: int, device: torch.device) -> Tensor:
        """Return rows out of range, bool of shape (rows,), after a run under `vmap` over that many.

        A code that is out of range and no row's own (a position, a constant) marks all rows.
        """
        found = torch.zeros(rows, dtype=torch.bool, device=device)
        for mark, axis in self._marks:
            found |= mark if axis is not None else mark.expand(rows)
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, with clamped codes where it is one of those that look at them."""
        kwargs = kwargs or {}
        guard = _GUARDS.get(func)
        return func(*args, **kwargs) if guard is None else guard(self, func, *args, **kwargs)

    def _mark(self, out_of_range: Tensor) -> None:
        mark, axis = rows_of(out_of_range.any())
        self._marks.append((mark, axis))

    def _in_range(self, codes: Tensor, count: int) -> Tensor:
        """Return `codes`, of any shape, clamped to 0 .. count - 1."""
        clamped = codes.clamp(0, max(count - 1, 0))
        self._mark(clamped != codes)
        return clamped


def _embedding(mode: Clamping, func: Any, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(mode._in_range(input, weight.shape[0]), weight, *args, **kwargs)


def _raw_embedding(mode: Clamping, func: Any, weight: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(weight, mode._in_range(indices, weight.shape[0]), *args, **kwargs)


def _one_hot(mode: Clamping, func: Any, tensor: Tensor, num_classes: int = -1) -> Any:
    if num_classes < 1 or tensor.is_floating_point():
        return func(tensor, num_classes)  # a shape that depends on values: refused at intake, and by `vmap`
    # By comparison: the library's own looks at the values of all rows together before it runs.
    codes = mode._in_range(tensor, num_classes).unsqueeze(-1)
    return (codes == torch.arange(num_classes, device=tensor.device)).long()


def _classes(mode: Clamping, func: Any, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
    if target.is_floating_point():
        return func(input, target, *args, **kwargs)  # shares of classes, of any value
    count = input.shape[1 if input.dim() > 1 else 0]
    ignored = target == kwargs.get("ignore_index", args[2] if len(args) > 2 else -100)
    clamped = target.clamp(0, count - 1)
    mode._mark((clamped != target) & ~ignored)
    return func(input, torch.where(ignored, target, clamped), *args, **kwargs)


_GUARDS: dict[Any, Callable[..., Any]] = {
    functional.embedding: _embedding,
    torch.embedding: _raw_embedding,
    functional.one_hot: _one_hot,
    functional.cross_entropy: _classes,
    functional.nll_loss: _classes,
}
