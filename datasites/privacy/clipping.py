"""Sums of clipped per-row gradients, without holding one gradient per row: ghost clipping in one backward pass.

For each layer that owns parameters, one forward pass records the layer's input and one backward pass the gradient of
the loss with respect to its output. From these two come (1) the norm of each row's gradient (ghost norms: Goodfellow
2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679) and (2) the weighted sum of gradients, with no second pass
through the model (book-keeping: Bu et al. 2023, arXiv:2210.00038). Layers without a ghost rule use Opacus'
grad samplers.

What is summed is exactly what was measured. A gradient that reaches a parameter by another way (a weight used outside
its layer) is in neither, so it can't leave unclipped, whatever the model does. That a row's records depend on that row
alone is `alone`'s: it runs the model on each row by itself.

Norms are taken in float64, so that no factor underflows on the way to a norm; sums are in float32. Not covered: the
rounding of those sums, a relative 1e-6 or so of the clipping norm. Where the positions of a sequence cancel, rounding
is relative to what cancels, and `_SLACK` makes the measured norm larger by more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.embedding_norm_sample import compute_embedding_norm_sample
from opacus.layers import DPGRU, DPLSTM, DPRNN
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

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

#: Slack in squared norms over a sequence, relative to the squared Cauchy-Schwarz bound: a sum of positions in float32
#: is off by up to length x 2^-24 of that bound, and the root of this covers 8,000 positions.
_SLACK = 1e-6
#: A row with a larger norm or number counts as none: beside it, float32 has no room for the weight that it would need.
_LARGEST = 1e30


#: A sum of gradients for each parameter.
Gradients = dict[Tensor, Tensor]


class UnsupportedModel(ValueError):
    """The model can't be trained privately as it is; the message names the layer and the fix."""


@dataclass(frozen=True)
class Record:
    """One use of a layer in a forward pass: its input and where the gradient of its output comes from.

    input_axis, output_axis: which axis the rows are in, when the model saw each row alone, as a batch of one (`alone`);
    None when it saw all of them, as its own first axis.
    """

    input: Tensor
    version: int
    edge: GradientEdge
    input_axis: int | None = None
    output_axis: int | None = None


@dataclass
class Recording:
    """All uses of all parameter-owning layers in one forward pass.

    mark: in a run of each row alone, a zero that every row has of its own; see `alone`.
    """

    uses: dict[nn.Module, list[Record]] = field(default_factory=dict)
    mark: Tensor | None = None


def owners(module: nn.Module) -> dict[str, nn.Module]:
    """Sub-modules that themselves own trainable parameters, by name.

    Opacus' recurrent layers only give other names to the parameters of the RNNLinear layers inside them.
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if type(layer) not in (DPGRU, DPLSTM, DPRNN)
        and any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    }


@contextmanager
def recording(module: nn.Module) -> Iterator[Recording]:
    """Record layer inputs and outputs of the forward passes inside; raises `UnsupportedModel` for an unknown layer."""
    made = Recording()

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise UnsupportedModel(f"{type(layer).__name__}: call it with one tensor, by position")
        (given, input_axis), (gave, output_axis) = rows_of(inputs[0]), rows_of(output)
        if gave.requires_grad:
            # The edge is taken now: an in-place operation after the layer would move the output to another node.
            use = Record(given.detach(), given._version, get_gradient_edge(gave), input_axis, output_axis)
            made.uses.setdefault(layer, []).append(use)

    def own(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # What is the same for all rows (positions, a first state) gives each row a gradient of its own as well.
        if made.mark is None or not all(isinstance(part, Tensor) for part in inputs):
            return None
        mark = made.mark
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
        yield made
    finally:
        for handle in handles:
            handle.remove()


def rows_of(tensor: Tensor) -> tuple[Tensor, int | None]:
    """What `torch.vmap` holds behind a tensor that model code sees, and the axis of the rows in it; None outside."""
    if not torch._C._functorch.is_batchedtensor(tensor):
        return tensor, None
    return torch._C._functorch.get_unwrapped(tensor), torch._C._functorch.maybe_get_bdim(tensor)


@dataclass(frozen=True)
class RowRecords:
    """A layer's inputs and output gradients, row by row: each tensor has the rows as its first dimension."""

    layer: nn.Module
    inputs: list[Tensor]
    gradients: list[Tensor]


def row_records(made: Recording, losses: Tensor) -> list[RowRecords]:
    """Run the backward pass of `losses`, shape (n,), down to the recorded outputs only; raises `UnsupportedModel`.

    No gradient of a parameter is computed here, and none is written to `.grad`.
    """
    rows = len(losses)
    uses = [(layer, use) for layer, records in made.uses.items() for use in records]
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


@dataclass(frozen=True)
class _Measured:
    """Squared gradient norm of each row, shape (n,), float64; and how to sum the gradients with one weight per row."""

    squares: Tensor
    weighted_sum: Callable[[Tensor], Gradients]


def clipped_sum(records: list[RowRecords], limits: Tensor) -> Gradients:
    """Sum over rows of each row's gradient cut to L2 norm `limits[row]`, shape (n,); by parameter.

    A row counts as zero if its gradient, or a number on the way to it, is not finite or above 1e30: it would turn the
    whole sum into a signal.
    """
    with torch.no_grad():
        measured = [_measure(record) for record in records]
        norms = torch.stack([layer.squares for layer in measured]).sum(0).sqrt()
        finite = norms <= _LARGEST  # false for NaN as well
        for record in records:
            for part in (*record.inputs, *record.gradients):
                # Over all rows first, which is cheap; NaN goes on to the look at each row.
                if part.is_floating_point() and not (part.numel() == 0 or _largest(part) <= _LARGEST):
                    finite &= part.flatten(1).abs().amax(1) <= _LARGEST
        if not finite.all():
            kept = [
                RowRecords(r.layer, [_zeroed(t, finite) for t in r.inputs], [_zeroed(t, finite) for t in r.gradients])
                for r in records
            ]
            measured = [_measure(record) for record in kept]
            norms = torch.where(finite, norms, torch.zeros_like(norms))
        weights = (limits.double() / (norms + 1e-6)).clamp(max=1.0).float()
        total: Gradients = {}
        for layer in measured:
            for parameter, value in layer.weighted_sum(weights).items():
                total[parameter] = total[parameter] + value if parameter in total else value
        return total


def row_norms(records: list[RowRecords]) -> Tensor:
    """L2 norm of each row's whole gradient, shape (n,). Private: for tests and for checks inside the hospital."""
    with torch.no_grad():
        return torch.stack([_measure(record).squares for record in records]).sum(0).sqrt()


def _largest(part: Tensor) -> float:
    low, high = part.aminmax()
    return torch.maximum(-low, high).item()


def _squares(part: Tensor) -> Tensor:
    """Sum of squares of each row, shape (n,), float64: in float32 the square of 1e-23 is zero."""
    return torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64).square()


def _zeroed(tensor: Tensor, keep: Tensor) -> Tensor:
    mask = keep.reshape(-1, *([1] * (tensor.dim() - 1)))
    return torch.where(mask, tensor, torch.zeros_like(tensor))


def _measure(records: RowRecords) -> _Measured:
    layer = records.layer
    if isinstance(layer, nn.Linear):
        return _linear(layer, records)
    if isinstance(layer, nn.Embedding):
        return _embedding(layer, records)
    return _by_samples(layer, records)


def _linear(layer: nn.Linear, records: RowRecords) -> _Measured:
    if all(gradient.dim() == 2 for gradient in records.gradients) and len(records.inputs) == 1:
        return _flat_linear(layer, records.inputs[0], records.gradients[0])
    # Several uses (a recurrent layer, a tied one) and further dimensions are all positions of one sequence.
    rows = len(records.inputs[0])
    inputs = torch.cat([t.reshape(rows, -1, layer.in_features) for t in records.inputs], 1)
    gradients = torch.cat([t.reshape(rows, -1, layer.out_features) for t in records.gradients], 1)
    if inputs.shape[1] == 1:
        return _flat_linear(layer, inputs[:, 0], gradients[:, 0])
    return _sequence_linear(layer, inputs, gradients)


def _flat_linear(layer: nn.Linear, inputs: Tensor, gradients: Tensor) -> _Measured:
    from_bias = 1.0 if layer.bias is not None and layer.bias.requires_grad else 0.0
    from_weight = _squares(inputs) if layer.weight.requires_grad else 0.0
    squares = _squares(gradients) * (from_weight + from_bias)

    def weighted_sum(weights: Tensor) -> Gradients:
        scaled = gradients * weights[:, None]
        total: Gradients = {}
        if layer.weight.requires_grad:
            total[layer.weight] = scaled.T @ inputs
        if from_bias:
            total[layer.bias] = scaled.sum(0)
        return total

    return _Measured(squares, weighted_sum)


def _sequence_linear(layer: nn.Linear, inputs: Tensor, gradients: Tensor) -> _Measured:
    rows, length, width = inputs.shape
    has_bias = layer.bias is not None and layer.bias.requires_grad
    squares = torch.zeros(rows, dtype=torch.float64, device=inputs.device)
    samples: Tensor | None = None
    if layer.weight.requires_grad:
        if length * (width + layer.out_features) < width * layer.out_features:
            g, a = gradients.double(), inputs.double()
            pairs = torch.bmm(g, g.transpose(1, 2)) * torch.bmm(a, a.transpose(1, 2))
            bound = (g.norm(dim=2) * a.norm(dim=2)).sum(1).square()
            # The weighted sum below is rounded where positions cancel; the slack errs on the other side.
            squares = squares + pairs.sum((1, 2)).clamp(min=0) + _SLACK * bound
        else:
            samples = torch.bmm(gradients.transpose(1, 2), inputs)
            squares = squares + _squares(samples)
    if has_bias:
        squares = squares + _squares(gradients.sum(1))

    def weighted_sum(weights: Tensor) -> Gradients:
        total: Gradients = {}
        if samples is not None:
            total[layer.weight] = (weights @ samples.flatten(1)).reshape(layer.weight.shape)
        elif layer.weight.requires_grad:
            scaled = (gradients * weights[:, None, None]).reshape(rows * length, -1)
            total[layer.weight] = scaled.T @ inputs.reshape(rows * length, -1)
        if has_bias:
            total[layer.bias] = weights @ gradients.sum(1)
        return total

    return _Measured(squares, weighted_sum)


def _embedding(layer: nn.Embedding, records: RowRecords) -> _Measured:
    rows = len(records.inputs[0])
    ids = torch.cat([t.reshape(rows, -1) for t in records.inputs], 1)
    gradients = torch.cat([t.reshape(rows, -1, layer.embedding_dim) for t in records.gradients], 1)
    if layer.padding_idx is not None:
        gradients = gradients * (ids != layer.padding_idx)[:, :, None]
    squares = compute_embedding_norm_sample(layer, [ids], gradients.double())[layer.weight].double().square()

    def weighted_sum(weights: Tensor) -> Gradients:
        scaled = (gradients * weights[:, None, None]).reshape(-1, layer.embedding_dim)
        total = torch.zeros_like(layer.weight, dtype=scaled.dtype)
        return {layer.weight: total.index_add_(0, ids.reshape(-1), scaled)}

    return _Measured(squares, weighted_sum)


def _by_samples(layer: nn.Module, records: RowRecords) -> _Measured:
    sampler = GradSampleModule.GRAD_SAMPLERS[type(layer)]
    samples: Gradients = {}
    for inputs, gradients in zip(records.inputs, records.gradients, strict=True):
        for parameter, sample in sampler(layer, [inputs], gradients).items():
            if parameter.requires_grad:
                samples[parameter] = samples[parameter] + sample if parameter in samples else sample
    squares = torch.stack([_squares(sample) for sample in samples.values()]).sum(0)

    def weighted_sum(weights: Tensor) -> Gradients:
        return {parameter: (weights @ s.flatten(1)).reshape(parameter.shape) for parameter, s in samples.items()}

    return _Measured(squares, weighted_sum)
