"""Runs a model on every row alone, many rows at a time: where I15 (one patient, one gradient) is enforced.

`torch.vmap` gives the model a batch of one, and runs it for all rows of a microbatch together. Model code sees one row
and the size 1; there is no axis, size, sum or state by which it could reach another row, whatever it does and however
rarely it does it. Training and evaluation go through here and never call a model on a batch. What a model would do to a
batch does not matter for privacy; `probe` looks at it because such a model would not train what its author intended.

A microbatch has a fixed public number of slots. Empty slots hold zeros and count as nothing, so how often the model is
called, and with which shapes, depends only on the number of rows divided by the number of slots. Nothing here catches
an exception: values out of range are clamped and marked (`clamping`), and other operations that can raise because of a
row's values are refused at intake. One that raises nevertheless ends the round, and people must look at it, unlike at a
row that is left out.

What remains are the last bits. A kernel may round a row's numbers differently in another slot, by a relative 1e-7 or
so; a model that magnifies this a million times would reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasites.privacy.clamping import Clamping
from datasites.privacy.model_inputs import Loss, Tensors, forward, slots_of
from datasites.privacy.records import LayerTrace


@dataclass(frozen=True)
class Outputs:
    """Results for n rows: outputs (n, ...), losses (n,) or none, and `fit` (n,), whether a row may count.

    fit: false where a code or class was out of range.
    """

    outputs: Tensor
    losses: Tensor
    fit: Tensor


def run(
    module: nn.Module,
    inputs: Tensors,
    trace: LayerTrace | None = None,
    loss: Loss | None = None,
    target: Tensor | None = None,
) -> Outputs:
    """Run the model, and `loss` where given, on each row alone.

    inputs, target: shape (n, ...), n >= 1. trace: a `recording` that is entered. Raises `ValueError` when a row does
    not give one output and one loss, and whatever the model raises.
    """
    rows = len(next(iter(inputs.values())))
    names = list(inputs)

    def one(mark: Tensor, label: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        if trace is not None:
            trace.mark = mark
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
    with Clamping() as clamping:
        try:
            output, value = torch.vmap(one, randomness="error")(mark, labels, *parts)
        finally:
            if trace is not None:
                trace.mark = None
    return Outputs(output.flatten(0, 1), value.flatten(0, 1), ~clamping.marked(rows, mark.device))


def scores(module: nn.Module, inputs: Tensors, *, slots: int, device: str | torch.device = "cpu") -> Tensor:
    """Each row's first output, shape (n,), on the host, `slots` rows at a time; NaN for a row that is not fit."""
    total = len(next(iter(inputs.values())))
    found = torch.full((total,), torch.nan)
    with torch.no_grad():
        for start in range(0, total, slots):
            rows = torch.arange(start, min(start + slots, total))
            part = {name: value.to(device) for name, value in slots_of(inputs, rows, slots).items()}
            given = run(module, part)
            first = given.outputs.flatten(1)[:, 0].float()
            found[rows] = torch.where(given.fit, first, torch.nan)[: len(rows)].cpu()
    return found
