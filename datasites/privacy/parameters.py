"""A model's parameters as one flat vector, in `named_parameters()` order: the order that every party adds up in.

Buffers are no parameters and never in the vector, so what a layer stores about the rows it saw can't leave with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from datasites.study.manifest import PARAMETER_BOUND


def dimension(module: nn.Module) -> int:
    """Count the parameters d, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def flatten(module: nn.Module) -> npt.NDArray[np.float32]:
    """Return all parameters as float32 of shape (d,)."""
    parts = [parameter.detach().cpu().float().reshape(-1).numpy() for parameter in module.parameters()]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def receive(module: nn.Module, vector: npt.NDArray[np.floating]) -> None:
    """Unflatten a vector, shape (d,), that another party chose; raises `ValueError` also beyond `PARAMETER_BOUND`.

    No guarantee rests on the bound: what is released holds no arithmetic on parameters. It keeps gradients, and so what
    a study learns, within numbers that mean something.
    """
    if (np.abs(vector) > PARAMETER_BOUND).any():
        raise ValueError(
            f"parameters: one is beyond +-{PARAMETER_BOUND:g}; send a model that has not diverged (lower the step size)"
        )
    unflatten(module, vector)


def unflatten(module: nn.Module, vector: npt.NDArray[np.floating]) -> None:
    """Write `vector`, shape (d,), into the parameters of `module`; raises `ValueError` on another shape or NaN."""
    if vector.shape != (dimension(module),):
        raise ValueError(
            f"parameters: shape {vector.shape}, but the model has {dimension(module)}; send its own vector"
        )
    if not np.isfinite(vector).all():
        raise ValueError("parameters: not all are finite numbers; send a model that has not diverged")
    start = 0
    with torch.no_grad():
        for parameter in module.parameters():
            part = vector[start : start + parameter.numel()]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(part)).reshape(parameter.shape).to(parameter.dtype))
            start += parameter.numel()
