"""One patient, one gradient (I15): shows by experiment that a row's loss and gradient depend on that row alone.

Clipping bounds a patient only then. A model that mixes rows (BatchNorm, attention over the batch, `x.mean(0)`, a loss
divided by the batch size) lets one patient change the gradients of all others, each up to a full clipping norm.

The probe keeps one row and replaces all others by random ones of the same kind, by fewer, by more, and by none, and
compares that row's output, its loss, and what each layer records for it: input and output gradient, the very tensors
that are clipped. It is an experiment and no proof: code that behaves well only when probed would pass. Such
code needs branches on its data, which the static verifier refuses; the two belong together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from datasites.privacy.clipping import recording, row_records
from datasites.privacy.noise import secure_generator
from datasites.privacy.trainer import Array, Inputs, Loss, binary_loss, forward, tensors

#: Other kernels are chosen for other batch sizes; their rounding differs by about 1e-6, a dependence by far more.
_TOLERANCE = 1e-3


class DependentRows(ValueError):
    """A row's output, loss or gradient changed when other rows did. The study must stop (I15)."""


def check_independence(
    module: nn.Module,
    loss: Loss | None,
    x: Inputs,
    y: Array,
    generator: np.random.Generator | None = None,
    *,
    device: str | torch.device = "cpu",
) -> None:
    """Raise `DependentRows` if what a row gives depends on the rows beside it.

    module: in private form, as it will be trained. x, y: two rows or more, as in training and about as many as a
    batch there has. Which row is kept is random. The error message holds no value of any row.
    """
    source = generator if generator is not None else secure_generator()
    inputs, target = tensors(x), torch.from_numpy(np.ascontiguousarray(y))
    rows = len(target)
    if rows < 2:
        raise ValueError("probe: give two rows or more; with one there is nothing to replace")
    module.to(device).eval()
    # The same size twice, then others: a loss divided by the batch size shows only there; alone, a row shows best
    # what it is without the others.
    for size in (rows, rows, max(2, rows // 2), rows + 3, 1, 1, 1):
        kept = int(source.integers(rows))
        place = int(source.integers(size))
        before = _traces(module, loss or binary_loss, inputs, target, kept, device)
        changed = {name: _others(part, kept, place, size, source) for name, part in inputs.items()}
        labels = _others(target, kept, place, size, source, from_rows=True)
        after = _traces(module, loss or binary_loss, changed, labels, place, device)
        _compare(before, after)


def _traces(
    module: nn.Module,
    loss: Loss,
    inputs: Mapping[str | int, Tensor],
    target: Tensor,
    row: int,
    device: str | torch.device,
) -> list[tuple[str, Tensor]]:
    """What row `row` gives: output, loss, and each layer's input and output gradient."""
    with recording(module) as made:
        output = forward(module, {name: part.to(device) for name, part in inputs.items()})
    losses = loss(output, target.to(device))
    if losses.shape != (len(target),) or output.shape[:1] != (len(target),):
        raise DependentRows("model or loss: not one output and one loss per row; return them with rows first")
    names = {layer: name for name, layer in module.named_modules()}
    found = [("output", output[row].detach()), ("loss", losses[row].detach())]
    for record in row_records(made, losses):
        name = f"layer {names[record.layer] or type(record.layer).__name__}"
        for inputs_, gradients in zip(record.inputs, record.gradients, strict=True):
            found.append((f"{name}, input", inputs_[row]))
            found.append((f"{name}, gradient", gradients[row]))
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


def _compare(before: list[tuple[str, Tensor]], after: list[tuple[str, Tensor]]) -> None:
    if [name for name, _ in before] != [name for name, _ in after]:
        raise DependentRows("model: other rows change which layers run; use the same layers for every batch")
    for (name, old), (_, new) in zip(before, after, strict=True):
        if old.shape != new.shape:
            raise DependentRows(f"{name}: other rows change its shape; keep one entry per row")
        if not old.is_floating_point():
            same = torch.equal(old, new)
        else:
            scale = torch.maximum(old.abs().max(), torch.tensor(1e-3, device=old.device)) if old.numel() else 1.0
            same = bool(torch.isclose(old / scale, new / scale, atol=_TOLERANCE, rtol=_TOLERANCE, equal_nan=True).all())
        if not same:
            raise DependentRows(
                f"{name}: a row's value changes with the rows beside it, so clipping would not bound a patient; "
                "remove what mixes rows (BatchNorm, attention or sums over the batch, losses divided by its size)"
            )
