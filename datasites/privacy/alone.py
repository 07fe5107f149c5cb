"""Runs a model on every row alone, many rows at a time: where I15 (one patient, one gradient) is made true.

`torch.vmap` gives the model a batch of one, and runs it for all rows of a microbatch together. Model code sees one row
and the size 1; there is no axis, size, sum or state by which it could reach another row, whatever it does and however
rarely. Training and evaluation go through here and never call a model on a batch. What a model would do to a batch does
not matter for privacy any more; `probe` looks at it because such a model would train on something else than was meant.

A row on which the model raises is left out, and nothing of it is told (`or_none`): an exception that depends on what is
in a row would otherwise stop a round, and that it stopped would be a message without noise.

Left: the last bits. A kernel may round a row's numbers differently with the number of rows beside it, by about 1e-7 of
them; a model that magnifies that a million times would show it. On a GPU, an index out of range ends the process, as no
exception can be caught there. How long a round takes depends on its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from datasites.privacy.batches import Loss, Tensors, forward, take
from datasites.privacy.clipping import Recording

Result = TypeVar("Result")


def outputs(module: nn.Module, inputs: Tensors, made: Recording | None = None, loss: Loss | None = None,
            target: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the model gives each row alone, (n, ...), and its losses, (n,), or an empty tensor without `loss`.

    inputs, target: rows first, one or more. made: a `recording` that is entered. Raises `ValueError` when a row does
    not give one output and one loss, and whatever the model raises.
    """
    rows = len(next(iter(inputs.values())))
    names = list(inputs)

    def one(mark: Tensor, label: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        if made is not None:
            made.mark = mark
        output = forward(module, {name: part.unsqueeze(0) for name, part in zip(names, parts, strict=True)})
        if output.shape[:1] != (1,):
            raise ValueError("model: not one output per row; return them with rows first")
        if loss is None:
            return output, label.new_empty(1)
        value = loss(output, label.unsqueeze(0))
        if value.shape != (1,):
            raise ValueError("loss: not one number per row; return one loss per row, not their mean or sum")
        return output, value

    parts = list(inputs.values())
    mark = torch.zeros(rows, device=parts[0].device)
    labels = target if target is not None else mark
    try:
        output, value = torch.vmap(one, randomness="error")(mark, labels, *parts)
    finally:
        if made is not None:
            made.mark = None
    return output.flatten(0, 1), value.flatten(0, 1)


def or_none(work: Callable[[Tensor], Result], rows: Tensor) -> list[tuple[Tensor, Result | None]]:
    """`work(rows)`, or if that raises, of halves of `rows`, down to single rows; None for a row that raises alone.

    For memory that runs out as well: that a batch was too large must not stop a round either.
    """
    try:
        return [(rows, work(rows))]
    except Exception:
        if len(rows) == 1:
            return [(rows, None)]
    half = len(rows) // 2
    return or_none(work, rows[:half]) + or_none(work, rows[half:])


def scores(module: nn.Module, inputs: Tensors, *, most: int, device: str | torch.device = "cpu") -> Tensor:
    """Each row's first output, shape (n,), on the host, at most `most` rows at a time; NaN for a row that raises."""
    total = len(next(iter(inputs.values())))
    found = torch.full((total,), torch.nan)

    def work(rows: Tensor) -> Tensor:
        part = {name: value.to(device) for name, value in take(inputs, rows).items()}
        return outputs(module, part)[0].flatten(1)[:, 0].float().cpu()

    with torch.no_grad():
        for start in range(0, total, most):
            for rows, given in or_none(work, torch.arange(start, min(start + most, total))):
                if given is not None:
                    found[rows] = given
    return found
