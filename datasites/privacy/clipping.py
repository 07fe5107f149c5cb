"""Sums of clipped per-row gradients, without holding one gradient per row: ghost clipping in one backward pass.

For each layer that owns parameters, one forward pass records the layer's input and one backward pass the gradient of
the loss with respect to its output. From these two come (1) the norm of each row's gradient (ghost norms: Goodfellow
2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679) and (2) the weighted sum of gradients, with no second pass
through the model (book-keeping: Bu et al. 2023, arXiv:2210.00038). Layers without a ghost rule use Opacus'
grad samplers.

What is summed is exactly what was measured. A gradient that reaches a parameter by another way (a weight used outside
its layer) is in neither, so it can't leave unclipped, whatever the model does. What remains to be shown is that
a row's records depend on that row alone, which `probe` does with the same records.

Not covered: rounding of float32 arithmetic, a relative 1e-6 or so of the clipping norm.
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

#: Slack for float32 cancellation in ghost norms over a sequence, relative to the Cauchy-Schwarz bound.
_SLACK = 1e-6


#: A sum of gradients for each parameter.
Gradients = dict[Tensor, Tensor]


class UnsupportedModel(ValueError):
    """The model can't be trained privately as it is; the message names the layer and the fix."""


@dataclass(frozen=True)
class Record:
    """One use of a layer in a forward pass: its input and where the gradient of its output comes from."""

    input: Tensor
    version: int
    edge: GradientEdge


@dataclass
class Recording:
    """All uses of all parameter-owning layers in one forward pass."""

    uses: dict[nn.Module, list[Record]] = field(default_factory=dict)


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
        if output.requires_grad:
            # The edge is taken now: an in-place operation after the layer would move the output to another node.
            use = Record(inputs[0].detach(), inputs[0]._version, get_gradient_edge(output))
            made.uses.setdefault(layer, []).append(use)

    handles = []
    seen: set[int] = set()
    for name, layer in owners(module).items():
        own = {id(parameter) for parameter in layer.parameters(recurse=False)}
        if own & seen:
            # Norms are taken layer by layer: two layers' gradients of one parameter could add up to more than both.
            raise UnsupportedModel(f"layer {name}: shares a parameter with another layer; use one layer twice instead")
        seen |= own
        if type(layer) not in SUPPORTED:
            raise UnsupportedModel(
                f"layer {name or '(the model itself)'} of type {type(layer).__name__} owns parameters; "
                "keep parameters in Linear, Conv, Embedding, LayerNorm, GroupNorm, RMSNorm, GRU, LSTM or attention"
            )
        handles.append(layer.register_forward_hook(record))
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


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
        if use.input.shape[:1] != (rows,) or gradient.shape[:1] != (rows,):
            raise UnsupportedModel(
                f"{type(layer).__name__}: the first dimension of its input or output is not the rows of the batch; "
                "keep rows first (batch_first=True, no reshape across rows)"
            )
        if use.input._version != use.version:
            raise UnsupportedModel(
                f"{type(layer).__name__}: its input was changed in place; use an out-of-place operation"
            )
        records = found.setdefault(layer, RowRecords(layer, [], []))
        records.inputs.append(use.input)
        records.gradients.append(gradient)
    return list(found.values())


@dataclass(frozen=True)
class _Measured:
    """Squared gradient norm of each row, shape (n,), and how to sum the gradients with one weight per row."""

    squares: Tensor
    weighted_sum: Callable[[Tensor], Gradients]


def clipped_sum(records: list[RowRecords], limits: Tensor) -> Gradients:
    """Sum over rows of each row's gradient cut to L2 norm `limits[row]`, shape (n,); by parameter.

    A row whose gradient is not finite counts as zero: it would otherwise turn the whole sum into a signal.
    """
    with torch.no_grad():
        measured = [_measure(record) for record in records]
        norms = torch.stack([layer.squares.double() for layer in measured]).sum(0).sqrt()
        finite = torch.isfinite(norms)
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
        return torch.stack([_measure(record).squares.double() for record in records]).sum(0).sqrt()


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
    from_weight = inputs.square().sum(1) if layer.weight.requires_grad else 0.0
    squares = gradients.square().sum(1) * (from_weight + from_bias)

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
    squares = torch.zeros(rows, device=inputs.device)
    samples: Tensor | None = None
    if layer.weight.requires_grad:
        if length * (width + layer.out_features) < width * layer.out_features:
            pairs = torch.bmm(gradients, gradients.transpose(1, 2)) * torch.bmm(inputs, inputs.transpose(1, 2))
            bound = (gradients.norm(dim=2) * inputs.norm(dim=2)).sum(1).square()
            # Cancellation could make the sum too small, and so clip too little; the slack errs on the other side.
            squares = squares + pairs.sum((1, 2)).clamp(min=0) + _SLACK * bound
        else:
            samples = torch.bmm(gradients.transpose(1, 2), inputs)
            squares = squares + samples.flatten(1).square().sum(1)
    if has_bias:
        squares = squares + gradients.sum(1).square().sum(1)

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
    squares = compute_embedding_norm_sample(layer, [ids], gradients)[layer.weight].square()

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
    squares = torch.stack([sample.flatten(1).square().sum(1) for sample in samples.values()]).sum(0)

    def weighted_sum(weights: Tensor) -> Gradients:
        return {parameter: (weights @ s.flatten(1)).reshape(parameter.shape) for parameter, s in samples.items()}

    return _Measured(squares, weighted_sum)
