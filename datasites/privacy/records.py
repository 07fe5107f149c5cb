"""Records what each layer that owns parameters takes in and what gradient comes back to it, row by row.

From these two come norms and sums of gradients (`clipping`), with no second pass through the model and no gradient of
a parameter. A gradient that reaches a parameter by another way (a weight used outside its layer) is in no record, so it
can't leave, whatever the model does. That a row's records depend on that row alone is `per_row`'s: it runs the model on
each row by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from datasites.study.errors import DatasitesError

#: Types that own parameters and whose per-row gradients are known. Exact types: a subclass may compute anything.
SUPPORTED: tuple[type[nn.Module], ...] = (
    nn.Linear,
    RNNLinear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.RMSNorm,
)


class UnsupportedModel(DatasitesError, ValueError):
    """The model can't be trained privately as it is; the message names the layer and the fix."""


@dataclass(frozen=True)
class LayerUse:
    """One use of a layer in a forward pass: its input and where the gradient of its output comes from.

    input_axis, output_axis: which axis the rows are in, when the model saw each row alone, as a batch of one
    (`per_row`); None when it saw all of them, as its own first axis.
    """

    input: Tensor
    version: int
    edge: GradientEdge
    input_axis: int | None = None
    output_axis: int | None = None


@dataclass
class LayerTrace:
    """All uses of all parameter-owning layers in one forward pass.

    mark: in a run of each row alone, a zero that every row has of its own; see `per_row`.
    """

    uses: dict[nn.Module, list[LayerUse]] = field(default_factory=dict)
    mark: Tensor | None = None


def owners(module: nn.Module) -> dict[str, nn.Module]:
    """Return sub-modules that themselves own trainable parameters, by name.

    Opacus' recurrent layers only give other names to the parameters of the RNNLinear layers inside them.
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if type(layer) not in (DPGRU, DPLSTM, DPRNN)
        and any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    }


@contextmanager
def recording(module: nn.Module) -> Iterator[LayerTrace]:
    """Record layer inputs and outputs of the forward passes inside; raises `UnsupportedModel` for an unknown layer."""
    trace = LayerTrace()

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise UnsupportedModel(f"{type(layer).__name__}: call it with one tensor, by position")
        (given, input_axis), (result, output_axis) = rows_of(inputs[0]), rows_of(output)
        if result.requires_grad:
            # The edge is taken now: an in-place operation after the layer would move the output to another node.
            use = LayerUse(given.detach(), given._version, get_gradient_edge(result), input_axis, output_axis)
            trace.uses.setdefault(layer, []).append(use)

    def own(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # What is the same for all rows (positions, a first state) gives each row a gradient of its own as well.
        if trace.mark is None or not all(isinstance(part, Tensor) for part in inputs):
            return None
        mark = trace.mark
        return tuple(part if rows_of(part)[1] is not None else part + mark.to(part.dtype) for part in inputs)

    handles = []
    seen: set[int] = set()
    for name, layer in owners(module).items():
        parameters = {id(parameter) for parameter in layer.parameters(recurse=False)}
        if parameters & seen:
            # Norms are taken layer by layer: two layers' gradients of one parameter could add up to more than both.
            raise UnsupportedModel(f"layer {name}: shares a parameter with another layer; use one layer twice instead")
        seen |= parameters
        if type(layer) not in SUPPORTED:
            raise UnsupportedModel(
                f"layer {name or '(the model itself)'} of type {type(layer).__name__} owns parameters; "
                "keep parameters in Linear, Conv, Embedding, LayerNorm, GroupNorm, RMSNorm, GRU, LSTM or attention"
            )
        handles += [layer.register_forward_pre_hook(own), layer.register_forward_hook(record)]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def rows_of(tensor: Tensor) -> tuple[Tensor, int | None]:
    """Return what `torch.vmap` holds behind a tensor of model code, and the axis of its rows.

    A tensor that has the shape of one row there gives one with n rows along that axis; outside, itself and None.
    """
    if not torch._C._functorch.is_batchedtensor(tensor):
        return tensor, None
    return torch._C._functorch.get_unwrapped(tensor), torch._C._functorch.maybe_get_bdim(tensor)


@dataclass(frozen=True)
class RowRecords:
    """A layer's inputs and output gradients, row by row: each tensor has the shape (rows, ...)."""

    layer: nn.Module
    inputs: list[Tensor]
    gradients: list[Tensor]


def row_records(trace: LayerTrace, losses: Tensor) -> list[RowRecords]:
    """Run the backward pass of `losses`, shape (n,), down to the recorded outputs only; raises `UnsupportedModel`.

    No gradient of a parameter is computed here, and none is written to `.grad`.
    """
    rows = len(losses)
    uses = [(layer, use) for layer, records in trace.uses.items() for use in records]
    if not uses or not losses.requires_grad:
        raise UnsupportedModel("the loss depends on no trainable layer; return logits that the layers computed")
    gradients = torch.autograd.grad(losses.sum(), [use.edge for _, use in uses], allow_unused=True)
    found: dict[nn.Module, RowRecords] = {}
    for (layer, use), gradient in zip(uses, gradients, strict=True):
        if gradient is None:
            continue
        inputs, gradient = (
            _rows_first(part, axis, rows, layer)
            for part, axis in ((use.input, use.input_axis), (gradient, use.output_axis))
        )
        if use.input._version != use.version:
            raise UnsupportedModel(
                f"{type(layer).__name__}: its input was changed in place; use an out-of-place operation"
            )
        records = found.setdefault(layer, RowRecords(layer, [], []))
        records.inputs.append(inputs)
        records.gradients.append(gradient)
    return list(found.values())


def _rows_first(part: Tensor, axis: int | None, rows: int, layer: nn.Module) -> Tensor:
    moved = part if axis is None else part.movedim(axis, 0)
    if moved.shape[:1] != (rows,) or (axis is not None and moved.shape[1:2] != (1,)):
        raise UnsupportedModel(
            f"{type(layer).__name__}: the first dimension of its input or output is not the rows of the batch; "
            "keep rows first (batch_first=True, no reshape across rows)"
        )
    return moved if axis is None else moved.squeeze(1)
