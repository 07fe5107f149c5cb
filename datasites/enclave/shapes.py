"""Shows that the number of rows of a batch stays in axis 0 of every tensor that model code makes (part of I15).

A model that gets the batch size into another axis (`h - h.squeeze(1)` of shape (n, n), a transpose of a matrix) could
read it from there as a plain number, and then do something else for one size of batch than for all others, where no
probe looks. So the model and its loss run on two batches of different size, and every operation's result must have the
same shape in both, but for axis 0, which must grow with the batch. Verified code has no branch on a row's content, so
two sizes speak for all: a branch on the batch size would need the size as a number first, and this is how it gets one.

Operations inside layers of torch, opacus and this package are not looked at: they are known not to tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from datasites.privacy.probe import DependentRows
from datasites.privacy.trainer import Loss, binary_loss

_SIZES = (6, 9)
_LIBRARIES = ("torch.", "opacus.", "datasites.")

#: Name of an operation and the shape of one of its results.
Step = tuple[str, tuple[int, ...]]


def check_shapes(module: nn.Module, loss: Loss | None, x: np.ndarray, y: np.ndarray) -> None:
    """Raise `DependentRows` if the batch size shows anywhere but in axis 0. x, y: one row or more, to repeat."""
    short = _steps(module, loss or binary_loss, x, y, _SIZES[0])
    try:
        long = _steps(module, loss or binary_loss, x, y, _SIZES[1])
    except Exception as error:
        raise DependentRows(
            f"model: it runs on {_SIZES[0]} rows and fails on {_SIZES[1]} ({type(error).__name__}); see each row alone"
        ) from error
    if [name for name, _ in short] != [name for name, _ in long]:
        raise DependentRows("model: what it computes depends on the number of rows in the batch; do the same for all")
    for (name, before), (_, after) in zip(short, long, strict=True):
        if not _alike(before, after):
            raise DependentRows(
                f"model: {name} gives shape {before} for {_SIZES[0]} rows and {after} for {_SIZES[1]}; the number of "
                "rows may show in axis 0 only (check for broadcasting, as in h - h.squeeze(1), and for transposes)"
            )


def _alike(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    if len(before) != len(after) or before[1:] != after[1:]:
        return False
    return before[:1] == after[:1] or before[0] * _SIZES[1] == after[0] * _SIZES[0]


def _steps(module: nn.Module, loss: Loss, x: np.ndarray, y: np.ndarray, size: int) -> list[Step]:
    chosen = np.arange(size) % len(y)
    inputs, target = torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen])
    with torch.no_grad(), _Recorder(module.eval()) as recorder:
        loss(module(inputs), target)
    return recorder.steps


class _Recorder(TorchDispatchMode):
    """Records what operations of model code give, while it is entered; layers of libraries are stepped over."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._within: list[bool] = []
        self._module = module
        self._handles: list[Any] = []

    def __enter__(self) -> _Recorder:
        for part in self._module.modules():
            library = type(part).__module__.startswith(_LIBRARIES)
            self._handles.append(part.register_forward_pre_hook(self._entering(library)))
            self._handles.append(part.register_forward_hook(self._leaving))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def _entering(self, library: bool) -> Any:
        return lambda *_: self._within.append(library)

    def _leaving(self, *_: Any) -> None:
        self._within.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (self._within and self._within[-1]):
            for part in result if isinstance(result, tuple | list) else (result,):
                if isinstance(part, torch.Tensor):
                    self.steps.append((str(func), tuple(part.shape)))
        return result
