"""Sums of clipped per-row gradients, without holding one gradient per row: ghost clipping in one backward pass.

From what `records` holds of each row come (1) the norm of its gradient (ghost norms: Goodfellow 2015, arXiv:1510.01799;
Li et al. 2022, arXiv:2110.05679) and (2) the weighted sum of gradients, with no second pass through the model
(book-keeping: Bu et al. 2023, arXiv:2210.00038). Layers without a ghost rule use the grad samplers of Opacus.

The numbers that are measured are the numbers that are added. A row's share of a parameter's gradient is one of
- a *vector* v, stored (float32, or float64 where positions of a sequence were added up first);
- a *pair* (b, a), whose outer product b a^T is meant as an exact product of the stored float32 numbers;
- a *sequence* of pairs, sum_t b_t a_t^T, where storing it would cost more than its Gram products.
Several uses of a parameter, and equal codes of one row in an embedding, are added before anything is measured. How well
these numbers match the true gradient matters to learning, not to privacy.

Theorem. Let S be the result of `ClippedSum` for the rows of a step, and S' the same with one patient's rows added, in
any microbatches. If the limits of a patient's rows add up to at most C (1 + 2^-50), then |S' - S|_2 <= C (1 + 2^-9).

Assumed:
(1) a row's records and whether it counts depend on that row alone (`per_row`, I15);
(2) float64 operations round to nearest, and the library's float64 products add the exact products of their numbers in
    some order: no lower precision, no Strassen. Before a share is stored, float32 operations may be arbitrary;
(3) at most 2^24 rows in a step, 2^27 parameters, 4,096 slots (`LARGEST_MODEL`, `MOST_ROWS`, `LocalTraining.slots`).

Proof. Write u = 2^-53, g_k = k u / (1 - k u): adding k terms in any order is off by at most g_k times the sum of their
absolute values (Higham 2002, section 4.2).
(a) *The measured norm N bounds the true norm of the share*, |g| <= N (1 + 2^-20). For vectors and pairs N^2 is a sum of
    at most 2^27 squares, or a product of two, off by a factor within 1 +- 2^-25. For a sequence let
    M = sum_t |b_t| |a_t|; its Gram sum q has at most 2^27 terms (it is taken only where positions are fewer than either
    width), so |q - |g|^2| <= 2^-25 M^2, and N = sqrt(max(q, 0)) + 2^-10 M >= |g|.
(b) *A row adds at most its limit*: its weight is w = fl(limit / N), or 1 where N <= limit, so
    w |g| <= limit (1 + 2^-19). Hence the exact sums of weighted shares of the two sets differ by at most
    C (1 + 2^-18).
(c) *The computed sum is close to the exact one.* The error of a block is at most g_k times the sum of w |share| in
    absolute values, coordinate by coordinate; take L2 norms. For vectors and pairs k <= 2^13 + 2 (`_MOST`) and the sum
    of norms is at most 2^24 C (1 + 2^-18): 2^-15 C. For sequences k <= 130 (`_CHUNK` positions in a product, then at
    most `_CHUNK` of those), and what is added is at most w M <= 2^10 limit in norm: 130 x 2^-53 x 2^10 x 2^24 C
    < 2^-11.9 C. Folding m <= 2^26 blocks adds (m u)^2 x 2^34 C < 2^-19 C, the last rounding u x 2^24 C.
(d) Together C (1 + 2^-18) + 2 (2^-11.9 + 2^-15 + 2^-19 + 2^-29) C < C (1 + 2^-10). The charged slack is `NORM_SLACK`.

A row that is not finite, or that is marked as not counting, has weight 0, and its numbers are zeroed before any sum:
nothing of it reaches S, and nothing here takes longer because of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from datasites.privacy.records import RowRecords
from datasites.privacy.summing import Sum

#: A sum of gradients for each parameter.
Gradients = dict[Tensor, Tensor]

#: What the theorem above is proved for.
LARGEST_MODEL = 2**27
MOST_ROWS = 2**24
#: Additions on a coordinate of a block, for shares that don't cancel within.
_MOST = 2**13
#: Positions of sequences in one product, and products in one block.
_CHUNK = 64
#: Slack in the norm of a sequence, relative to what its positions could give together.
_SLACK = 2.0**-10


class ClippedSum:
    """Sum of rows' gradients, each clipped to its limit, over as many microbatches as are added."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Sum] = {}

    def add(self, records: Iterable[RowRecords], limits: Tensor, counted: Tensor | None = None) -> None:
        """Add a microbatch of n rows. limits: L2 norm that each row is clipped to, float64 (n,).

        counted: bool (n,); a row where it is false counts as zero, as does one whose gradient is not finite.
        """
        with torch.no_grad():
            shares = [share for record in records for share in _shares(record)]
            norms = _norms(shares)
            keep = torch.isfinite(norms) if counted is None else torch.isfinite(norms) & counted
            weights = torch.where(norms > limits, limits / norms, torch.ones_like(norms))
            weights = torch.where(keep, weights, torch.zeros_like(weights))
            for share in shares:
                if share.parameter not in self._sums:
                    self._sums[share.parameter] = Sum(share.parameter)
                share.add(self._sums[share.parameter], weights, ~keep)

    def value(self) -> Gradients:
        """Return the sum for each parameter that any row had a share in, float64."""
        return {parameter: total.value() for parameter, total in self._sums.items()}


def _norms(shares: list[_Share]) -> Tensor:
    return torch.stack([share.squares for share in shares]).sum(0).sqrt()


class _Share(Protocol):
    """The rows' shares of one parameter: their squared norms, float64 (n,), and how they are added up."""

    @property
    def parameter(self) -> Tensor: ...

    @property
    def squares(self) -> Tensor: ...

    def add(self, total: Sum, weights: Tensor, dropped: Tensor) -> None: ...


def _squares(part: Tensor) -> Tensor:
    """Sum of squares of each row, float64 (n,): in float32 the square of 1e-23 is zero."""
    norms: Tensor = torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64)
    return norms.square()


def _zeroed(part: Tensor, dropped: Tensor) -> Tensor:
    """Return `part` as float64, zero in the rows that are dropped."""
    copy = part.double() if part.dtype != torch.float64 else part.clone()
    return copy.masked_fill_(dropped.reshape(-1, *([1] * (part.dim() - 1))), 0.0)


def _scaled(part: Tensor, weights: Tensor, dropped: Tensor) -> Tensor:
    return _zeroed(part, dropped).mul_(weights.reshape(-1, *([1] * (part.dim() - 1))))


@dataclass(frozen=True)
class _Vectors:
    """One stored vector for each row, of the parameter's shape."""

    parameter: Tensor
    vectors: Tensor

    @property
    def squares(self) -> Tensor:
        return _squares(self.vectors)

    def add(self, total: Sum, weights: Tensor, dropped: Tensor) -> None:
        parts = zip(*(part.split(_CHUNK) for part in (self.vectors, weights, dropped)), strict=True)
        for vectors, weight, drop in parts:
            block = total.block(len(weight) + 1, _MOST)
            block.view(-1).addmv_(_zeroed(vectors.flatten(1), drop).T, weight)


@dataclass(frozen=True)
class _Pairs:
    """An output gradient (n, out) and an input (n, in) for each row."""

    parameter: Tensor
    gradients: Tensor
    inputs: Tensor

    @property
    def squares(self) -> Tensor:
        return _squares(self.gradients) * _squares(self.inputs)

    def add(self, total: Sum, weights: Tensor, dropped: Tensor) -> None:
        block = total.block(len(weights) + 1, _MOST)
        block.addmm_(_scaled(self.gradients, weights, dropped).T, _zeroed(self.inputs, dropped))


@dataclass(frozen=True)
class _Sequences:
    """Output gradients (n, length, out) and inputs (n, length, in) for each row."""

    parameter: Tensor
    gradients: Tensor
    inputs: Tensor

    @property
    def squares(self) -> Tensor:
        g, a = self.gradients.double(), self.inputs.double()
        gram = (torch.bmm(g, g.transpose(1, 2)) * torch.bmm(a, a.transpose(1, 2))).sum((1, 2))
        together: Tensor = (g.norm(dim=2) * a.norm(dim=2)).sum(1)
        return (gram.clamp(min=0).sqrt() + _SLACK * together).square()

    def add(self, total: Sum, weights: Tensor, dropped: Tensor) -> None:
        gradients = _scaled(self.gradients, weights, dropped).flatten(0, 1)
        inputs = _zeroed(self.inputs, dropped).flatten(0, 1)
        for g, a in zip(gradients.split(_CHUNK), inputs.split(_CHUNK), strict=True):
            total.block(1, _CHUNK).add_(g.T @ a)


@dataclass(frozen=True)
class _Codes:
    """For each row, codes (n, length) that differ from one another where their sums (n, length, width) are not zero."""

    parameter: Tensor
    codes: Tensor
    sums: Tensor

    @property
    def squares(self) -> Tensor:
        return _squares(self.sums)

    def add(self, total: Sum, weights: Tensor, dropped: Tensor) -> None:
        block = total.block(len(weights), _MOST)
        block.index_add_(0, self.codes.flatten(), _scaled(self.sums, weights, dropped).flatten(0, 1))


def _shares(records: RowRecords) -> list[_Share]:
    layer = records.layer
    stored = RowRecords(layer, [_stored(part) for part in records.inputs], [_stored(g) for g in records.gradients])
    if isinstance(layer, nn.Linear):
        return _linear(layer, stored)
    if isinstance(layer, nn.Embedding):
        return [_embedding(layer, stored)]
    return _by_samples(layer, stored)


def _stored(part: Tensor) -> Tensor:
    # Products of float32 numbers are exact in float64.
    return part.float() if part.is_floating_point() else part


def _linear(layer: nn.Linear, records: RowRecords) -> list[_Share]:
    # Several uses (a recurrent layer, a tied one) and further dimensions are all positions of one sequence.
    rows = len(records.inputs[0])
    inputs = torch.cat([part.reshape(rows, -1, layer.in_features) for part in records.inputs], 1)
    gradients = torch.cat([part.reshape(rows, -1, layer.out_features) for part in records.gradients], 1)
    shares: list[_Share] = []
    if layer.weight.requires_grad:
        length = inputs.shape[1]
        if length == 1:
            shares.append(_Pairs(layer.weight, gradients[:, 0], inputs[:, 0]))
        elif length * (layer.in_features + layer.out_features) < layer.in_features * layer.out_features:
            shares.append(_Sequences(layer.weight, gradients, inputs))
        else:
            shares.append(_Vectors(layer.weight, torch.bmm(gradients.transpose(1, 2), inputs)))
    if layer.bias is not None and layer.bias.requires_grad:
        shares.append(_Vectors(layer.bias, gradients.sum(1)))
    return shares


def _embedding(layer: nn.Embedding, records: RowRecords) -> _Share:
    rows = len(records.inputs[0])
    # Codes out of range were clamped in the forward pass, and their rows don't count.
    codes = torch.cat([part.reshape(rows, -1) for part in records.inputs], 1).clamp(0, layer.num_embeddings - 1)
    gradients = torch.cat([part.reshape(rows, -1, layer.embedding_dim) for part in records.gradients], 1).double()
    if layer.padding_idx is not None:
        gradients = gradients.masked_fill((codes == layer.padding_idx)[:, :, None], 0.0)
    if codes.shape[1] == 1:
        return _Codes(layer.weight, codes, gradients)
    codes, order = codes.sort(dim=1, stable=True)
    starts = torch.ones_like(codes)
    starts[:, 1:] = codes[:, 1:] != codes[:, :-1]
    place = starts.cumsum(1) - 1
    gradients = gradients.gather(1, order[:, :, None].expand_as(gradients))
    sums = torch.zeros_like(gradients).scatter_add_(1, place[:, :, None].expand_as(gradients), gradients)
    return _Codes(layer.weight, torch.zeros_like(codes).scatter_(1, place, codes), sums)


def _by_samples(layer: nn.Module, records: RowRecords) -> list[_Share]:
    sampler = GradSampleModule.GRAD_SAMPLERS[type(layer)]
    samples: Gradients = {}
    for inputs, gradients in zip(records.inputs, records.gradients, strict=True):
        for parameter, sample in sampler(layer, [inputs], gradients).items():
            if parameter.requires_grad:
                samples[parameter] = samples[parameter] + sample if parameter in samples else sample
    return [_Vectors(parameter, sample) for parameter, sample in samples.items()]
