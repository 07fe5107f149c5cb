"""Finds a model that treats a batch otherwise than row by row (I15): a mistake of its author, or an attack.

Such a model (BatchNorm, attention over the batch, `x.mean(0)`, a loss divided by the batch size) would let one patient
change the gradients of all others, if it were run on batches. It is not: training and evaluation run it on every row
`per_row`, and that is what holds. But it would not train what its author intended, and may be an attack; so rehearsal
and every round compare the results of rows run together with those of each row alone, and the study stops where they
differ. In a round the rows are invented: a check on patients' rows that can fail would reveal something about them when
it does.

Compared are each row's output, its loss, and what each layer records for it, input and output gradient: the very
tensors that are clipped. As an experiment it sees what it happens to meet; a gate that opens rarely may stay unseen.
"""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import torch
from torch import Tensor, nn

from datasites.privacy import per_row
from datasites.privacy.clamping import Clamping
from datasites.privacy.model_inputs import Array, Inputs, Loss, Tensors, binary_loss, forward, tensor, tensors
from datasites.privacy.noise import SecureRandom
from datasites.privacy.records import LayerTrace, UnsupportedModel, recording, row_records
from datasites.study.errors import DatasitesError
from datasites.study.schema import DataModel

#: Largest L2 norm of what a whole row's values may differ by, relative to their own. In float64 what remains is a cast
#: that the model makes itself; in float32, for models that can't be run in float64, the rounding of other kernels.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_REMEDY = "remove what mixes rows (BatchNorm, attention or sums over the batch, losses divided by its size)"

_Traces = list[tuple[str, Tensor]]


class DependentRows(DatasitesError, ValueError):
    """A row's output, loss or gradient is not what that row alone gives. The study must stop (I15)."""


class _ModelRaised(Exception):
    """The model itself raised `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def check_independence(
    module: nn.Module,
    loss: Loss | None,
    x: Inputs,
    y: Array | Tensor,
    randomness: SecureRandom | None = None,
    *,
    device: str | torch.device = "cpu",
) -> None:
    """Raise `DependentRows` if what rows give together is not what each gives alone.

    module: in private form, as it will be trained. x, y: shape (n, ...), n >= 2, mock or `invented`. The error message
    holds no value of any row. Raises `UnsupportedModel` as training would, and what the model raises itself.
    """
    inputs, target = tensors(x), tensor(y)
    source = (randomness or SecureRandom()).generator("probe")
    rows = len(target)
    if rows < 2:
        raise ValueError("probe: give two rows or more; with one there is nothing to replace")
    module.to(device).eval()
    # As they are; then disturbed and in another number, since rows may happen to be alike.
    drawn = torch.from_numpy(source.integers(rows, size=rows + 3))
    disturbed = {name: _disturbed(part[drawn], source) for name, part in inputs.items()}
    try:
        _compare_all(module, loss or binary_loss, inputs, target, device)
    except _ModelRaised as raised:
        raise raised.error from None
    with contextlib.suppress(_ModelRaised):  # disturbed rows may be none that a model can take
        _compare_all(module, loss or binary_loss, disturbed, target[drawn], device)


def invented(
    inputs: Tensors, target: Tensor, rows: int, source: np.random.Generator, model: DataModel | None = None
) -> tuple[Tensors, Tensor]:
    """Return rows of the same shapes that nobody has, and that hold nothing of those given.

    model: says what ordinary rows hold, and they are drawn from it: numbers over the ranges that it encodes to, one
    column of a category's levels, labels. Without one (or where it has other columns) numbers lie in [0, 2), so
    that they stand for codes as well; codes and labels are 0 or 1.
    """
    if model is not None and {name: part.shape[1:] for name, part in inputs.items()} == {0: (len(model.columns),)}:
        x, y = model.invent(rows, source)
        return {0: torch.from_numpy(x).to(inputs[0].dtype)}, torch.from_numpy(y).to(target.dtype)

    def make(part: Tensor) -> Tensor:
        shape = (rows, *part.shape[1:])
        values = source.uniform(0, 2, shape) if part.is_floating_point() else source.integers(2, size=shape)
        return torch.from_numpy(values).to(part.dtype)

    labels = torch.from_numpy(source.integers(2, size=(rows, *target.shape[1:]))).to(target.dtype)
    return {name: make(part) for name, part in inputs.items()}, labels


def _compare_all(module: nn.Module, loss: Loss, inputs: Tensors, target: Tensor, device: str | torch.device) -> None:
    try:
        precise = copy.deepcopy(module).double()
        together = _together(precise, loss, _double(inputs), _double({0: target})[0], device)
    except UnsupportedModel:
        raise
    except Exception:
        # Code that fixes its types (`x.float()`) can't be run in float64; what else may be wrong shows again.
        precise, kind = module, torch.float32
        try:
            together = _together(precise, loss, inputs, target, device)
        except (UnsupportedModel, DependentRows):
            raise
        except Exception as error:
            raise _ModelRaised(error) from error
    else:
        kind, inputs, target = torch.float64, _double(inputs), _double({0: target})[0]
    try:
        single = _single(precise, loss, inputs, target, device)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise DependentRows(
            f"model: it runs on rows together and fails on a row alone ({type(error).__name__}); {_REMEDY}"
        ) from error
    _compare(together, single, _TOLERANCES[kind])


def _double(inputs: Tensors) -> dict[str | int, Tensor]:
    return {name: part.double() if part.is_floating_point() else part for name, part in inputs.items()}


def _together(module: nn.Module, loss: Loss, inputs: Tensors, target: Tensor, device: str | torch.device) -> _Traces:
    """Run the rows in one batch; return, rows first: output, loss, each layer's input and output gradient."""
    with recording(module) as trace, Clamping():
        output = forward(module, {name: part.to(device) for name, part in inputs.items()})
        losses = loss(output, target.to(device))
    if losses.shape != (len(target),) or output.shape[:1] != (len(target),):
        raise DependentRows("model or loss: not one output and one loss per row; return them with rows first")
    return _traces(module, output, losses, trace)


def _single(module: nn.Module, loss: Loss, inputs: Tensors, target: Tensor, device: str | torch.device) -> _Traces:
    with recording(module) as trace:
        parts = {name: part.to(device) for name, part in inputs.items()}
        found = per_row.run(module, parts, trace, loss, target.to(device))
    return _traces(module, found.outputs, found.losses, trace)


def _traces(module: nn.Module, output: Tensor, losses: Tensor, trace: LayerTrace) -> _Traces:
    names = {layer: name for name, layer in module.named_modules()}
    found = [("output", output.detach()), ("loss", losses.detach())]
    for use in row_records(trace, losses):
        name = f"layer {names[use.layer] or type(use.layer).__name__}"
        found += [(f"{name}, input", part) for part in use.inputs]
        found += [(f"{name}, gradient", part) for part in use.gradients]
    return found


def _disturbed(part: Tensor, source: np.random.Generator) -> Tensor:
    """Move and stretch numbers: likely to disturb whatever looks across rows. Codes stay."""
    if not part.is_floating_point():
        return part
    noise = torch.from_numpy(source.standard_normal(tuple(part.shape))).to(part.dtype)
    return torch.nan_to_num(part) * 2 + 3 * noise


def _compare(together: _Traces, single: _Traces, tolerance: float) -> None:
    if [name for name, _ in together] != [name for name, _ in single]:
        raise DependentRows("model: other rows change which layers run; use the same layers for every batch")
    for (name, many), (_, one) in zip(together, single, strict=True):
        if many.shape != one.shape:
            raise DependentRows(f"{name}: other rows change its shape; keep one entry per row")
        old, new = (
            torch.nan_to_num(part.flatten(1) if part.dim() > 1 else part[:, None]).double() for part in (many, one)
        )
        same = torch.isfinite(many.double()) == torch.isfinite(one.double())
        allowed = tolerance * old.norm(dim=1).clamp(min=1e-3)
        if not (same.all() and ((old - new).norm(dim=1) <= allowed).all()):
            raise DependentRows(
                f"{name}: a row's value changes with the rows beside it, so it is not that patient's alone; {_REMEDY}"
            )
