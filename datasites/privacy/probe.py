"""One patient, one gradient (I15): shows by experiment that a row's loss and gradient depend on that row alone.

Clipping bounds a patient only then. A model that mixes rows (BatchNorm, attention over the batch, `x.mean(0)`, a loss
divided by the batch size) lets one patient change the gradients of all others, each up to a full clipping norm.

The probe keeps one row and replaces all others by random ones of the same kind, by fewer, by more, and by none, and
compares that row's output, its loss, and what each layer records for it: input and output gradient, the very tensors
that are clipped. It is an experiment and no proof: code that behaves well only when probed would pass. Such
code needs branches on its data, which the static verifier refuses; the two belong together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from datasites.privacy.batches import Array, Inputs, Loss, Tensors, binary_loss, forward, tensor, tensors
from datasites.privacy.clipping import recording, row_records
from datasites.privacy.noise import secure_generator

#: Other kernels are chosen for other batch sizes; their rounding differs by about 1e-6, a dependence by far more.
_TOLERANCE = 1e-3


class DependentRows(ValueError):
    """A row's output, loss or gradient changed when other rows did. The study must stop (I15)."""


def check_independence(
    module: nn.Module,
    loss: Loss | None,
    x: Inputs,
    y: Array | Tensor,
    generator: np.random.Generator | None = None,
    *,
    device: str | torch.device = "cpu",
) -> None:
    """Raise `DependentRows` if what a row gives depends on the rows beside it.

    module: in private form, as it will be trained. x, y: two rows or more, as in training and about as many as a
    batch there has. Which row is kept is random. The error message holds no value of any row.
    """
    inputs, target = tensors(x), tensor(y)
    source = generator if generator is not None else secure_generator()
    rows = len(target)
    if rows < 2:
        raise ValueError("probe: give two rows or more; with one there is nothing to replace")
    module.to(device).eval()
    before = _traces(module, loss or binary_loss, inputs, target, device)
    # The same size twice, then others: a loss divided by the batch size shows only there; alone, a row shows best
    # what it is without the others.
    for size in (rows, rows, max(2, rows // 2), rows + 3, 1, 1, 1):
        kept, place = int(source.integers(rows)), int(source.integers(size))
        changed = {name: _others(part, kept, place, size, source) for name, part in inputs.items()}
        labels = _others(target, kept, place, size, source, from_rows=True)
        after = _traces(module, loss or binary_loss, changed, labels, device)
        _compare(before, kept, after, place)


def _traces(
    module: nn.Module, loss: Loss, inputs: Tensors, target: Tensor, device: str | torch.device
) -> list[tuple[str, Tensor]]:
    """What the rows give, rows first in each: output, loss, and each layer's input and output gradient."""
    with recording(module) as made:
        output = forward(module, {name: part.to(device) for name, part in inputs.items()})
    losses = loss(output, target.to(device))
    if losses.shape != (len(target),) or output.shape[:1] != (len(target),):
        raise DependentRows("model or loss: not one output and one loss per row; return them with rows first")
    names = {layer: name for name, layer in module.named_modules()}
    found = [("output", output.detach()), ("loss", losses.detach())]
    for record in row_records(made, losses):
        name = f"layer {names[record.layer] or type(record.layer).__name__}"
        found += [(f"{name}, input", part) for part in record.inputs]
        found += [(f"{name}, gradient", part) for part in record.gradients]
    return found


def _others(
    part: Tensor, kept: int, place: int, size: int, source: np.random.Generator, *, from_rows: bool = False
) -> Tensor:
    """`size` rows: row `kept` of `part` at `place`, all others random (integers: values that occur in the rows)."""
    drawn = part[torch.from_numpy(source.integers(len(part), size=size))].clone()
    if part.is_floating_point() and not from_rows:
        # Rows from elsewhere in the table, moved and stretched: likely to disturb whatever looks across rows.
        noise = torch.from_numpy(source.standard_normal(tuple(drawn.shape))).to(drawn.dtype)
        drawn = torch.nan_to_num(drawn) * 2 + 3 * noise
    drawn[place] = part[kept]
    return drawn


def _compare(before: list[tuple[str, Tensor]], kept: int, after: list[tuple[str, Tensor]], place: int) -> None:
    if [name for name, _ in before] != [name for name, _ in after]:
        raise DependentRows("model: other rows change which layers run; use the same layers for every batch")
    for (name, old_rows), (_, new_rows) in zip(before, after, strict=True):
        old, new = old_rows[kept], new_rows[place]
        if old.shape != new.shape:
            raise DependentRows(f"{name}: other rows change its shape; keep one entry per row")
        if not old.is_floating_point():
            same = torch.equal(old, new)
        else:
            size = torch.nan_to_num(old.abs(), nan=0.0, posinf=0.0)
            scale = size.max().clamp(min=1e-3) if old.numel() else 1.0
            same = bool(torch.isclose(old / scale, new / scale, atol=_TOLERANCE, rtol=_TOLERANCE, equal_nan=True).all())
        if not same:
            raise DependentRows(
                f"{name}: a row's value changes with the rows beside it, so clipping would not bound a patient; "
                "remove what mixes rows (BatchNorm, attention or sums over the batch, losses divided by its size)"
            )
