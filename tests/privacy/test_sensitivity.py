"""One patient moves the released sum by a clip and a stated slack at most, whatever numbers rows are made of (I15).

The theorem in `privacy.clipping`, attacked: huge numbers, numbers that cancel in the last place, positions that are
equal codes, several uses, microbatches of any number of slots, and rows that move to other slots when one is added.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.layers.dp_rnn import RNNLinear
from torch import nn

from datasites.privacy.clipping import ClippedSum
from datasites.privacy.noise import SecureRandom
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.records import SUPPORTED, RowRecords
from datasites.privacy.summing import Sum
from datasites.privacy.trainer import train_round
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import NORM_SLACK
from tests.privacy.norms import row_norms

CLIP = 0.75
#: Exact sums of products of float32 numbers, up to 2^-64 of the largest of them.
EXACT = np.longdouble


def sequence(layer, length, uses=1):
    """Inputs and output gradients of `uses` uses of a linear layer on a sequence."""
    return lambda n: ([(n, length, layer.in_features)] * uses, [(n, length, layer.out_features)] * uses)


#: name -> (layer, rows -> shapes of inputs and of output gradients); codes where the layer is an embedding.
KINDS = {
    "linear": (nn.Linear(3, 2), lambda n: ([(n, 3)], [(n, 2)])),
    "linear, used twice": (nn.Linear(3, 2), lambda n: ([(n, 3)] * 2, [(n, 2)] * 2)),
    "linear, stored sequence": (nn.Linear(3, 2), sequence(nn.Linear(3, 2), 6)),
    "linear, Gram sequence": (nn.Linear(16, 16), sequence(nn.Linear(16, 16), 6)),
    "linear, Gram of two uses": (nn.Linear(16, 16), sequence(nn.Linear(16, 16), 3, uses=2)),
    "embedding": (nn.Embedding(3, 2), lambda n: ([(n, 6)], [(n, 6, 2)])),
    "embedding, one code": (nn.Embedding(3, 2), lambda n: ([(n,)], [(n, 2)])),
    "embedding, padded, used twice": (nn.Embedding(3, 2, padding_idx=1), lambda n: ([(n, 3)] * 2, [(n, 3, 2)] * 2)),
    "conv1d": (nn.Conv1d(2, 3, 3), lambda n: ([(n, 2, 6)], [(n, 3, 4)])),
    "conv2d, grouped": (nn.Conv2d(2, 2, 2, groups=2), lambda n: ([(n, 2, 3, 3)], [(n, 2, 2, 2)])),
    "conv3d": (nn.Conv3d(1, 2, 2), lambda n: ([(n, 1, 2, 3, 2)], [(n, 2, 1, 2, 1)])),
    "layer norm": (nn.LayerNorm(5), lambda n: ([(n, 4, 5)], [(n, 4, 5)])),
    "group norm": (nn.GroupNorm(2, 4), lambda n: ([(n, 4, 5)], [(n, 4, 5)])),
    # What recurrent layers are made of: used once for each position.
    "recurrent": (RNNLinear(3, 2), lambda n: ([(n, 3)] * 4, [(n, 2)] * 4)),
    "recurrent, Gram": (RNNLinear(16, 16), lambda n: ([(n, 16)] * 4, [(n, 16)] * 4)),
    "instance norm": (nn.InstanceNorm1d(3, affine=True), lambda n: ([(n, 3, 5)], [(n, 3, 5)])),
    "instance norm, 2d": (nn.InstanceNorm2d(2, affine=True), lambda n: ([(n, 2, 3, 2)], [(n, 2, 3, 2)])),
    "instance norm, 3d": (nn.InstanceNorm3d(2, affine=True), lambda n: ([(n, 2, 2, 3, 2)], [(n, 2, 2, 3, 2)])),
    "rms norm": (nn.RMSNorm(5), lambda n: ([(n, 4, 5)], [(n, 4, 5)])),
}
PATTERNS = ("random", "cancelling", "one part in 2^25", "wild", "equal", "one huge", "not finite", "zero")


def numbers(pattern, shape, rng):
    """float32 numbers of one row: of its own scale, and made to lie badly."""
    scale = 2.0 ** rng.integers(-60, 61)
    drawn = rng.normal(size=shape)
    flat = drawn.reshape(shape[0], -1) if len(shape) > 1 else drawn.reshape(-1, 1)
    if pattern == "cancelling":
        # Neighbours with opposite signs, one unit in the last place apart.
        flat[:] = np.sign(flat[:1])
        flat[1::2] *= -1 - rng.integers(0, 4) * 2.0**-23
    elif pattern == "one part in 2^25":
        # What embedding_cancel does: in float64 the sum is nearly zero, in float32 the small parts are lost.
        flat[:] = 2.0**-25
        flat[0], flat[-1] = 1.0, -1.0 - 2.0**-23
    elif pattern == "wild":
        flat *= 2.0 ** rng.integers(-60, 61, size=flat.shape)
    elif pattern == "equal":
        flat[:] = 1.0
    elif pattern == "one huge":
        flat.reshape(-1)[rng.integers(flat.size)] = 2.0**60
    elif pattern == "not finite":
        flat.reshape(-1)[rng.integers(flat.size)] = rng.choice([np.nan, np.inf, -np.inf])
    elif pattern == "zero":
        flat[:] = 0.0
    with np.errstate(over="ignore"):
        return (drawn * scale).astype(np.float32)


def made_rows(kind, patterns, rng):
    """Records of one row for each entry of `patterns` (of inputs, of gradients)."""
    layer, shapes = KINDS[kind]
    inputs, gradients = shapes(len(patterns))
    if isinstance(layer, nn.Embedding):
        # Mostly equal codes: these are what is added up first.
        given_ = [torch.from_numpy(rng.choice([0, 0, 0, 1, 2], size=shape)) for shape in inputs]
    else:
        given_ = [torch.from_numpy(np.stack([numbers(one, shape[1:], rng) for one, _ in patterns])) for shape in inputs]
    back = [torch.from_numpy(np.stack([numbers(one, shape[1:], rng) for _, one in patterns])) for shape in gradients]
    return RowRecords(layer, given_, back)


def total(records, limits, slots):
    """The released sum before noise: all parameters' sums end to end, exactly as they are."""
    found, rows = ClippedSum(), len(limits)
    for start in range(0, rows, slots):
        taken = slice(start, start + slots)

        def padded(part, taken=taken):
            made = part.new_zeros((slots, *part.shape[1:]))
            made[: len(part[taken])] = part[taken]
            return made

        microbatch = RowRecords(records.layer, [*map(padded, records.inputs)], [*map(padded, records.gradients)])
        cut = padded(limits)
        found.add([microbatch], cut, cut > 0)
    parts = [value.reshape(-1).numpy() for _, value in sorted(found.value().items(), key=lambda item: item[0].numel())]
    return np.concatenate(parts).astype(EXACT) if parts else np.zeros(1, EXACT)


def without(records, dropped):
    kept = ~torch.from_numpy(dropped)
    return RowRecords(records.layer, [p[kept] for p in records.inputs], [p[kept] for p in records.gradients])


def distance(one, other):
    return float(np.sqrt(((one - other) ** 2).sum()))


def test_every_layer_that_may_own_parameters_is_attacked():
    assert {type(layer) for layer, _ in KINDS.values()} == set(SUPPORTED)


rows_of_anyone = st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from(PATTERNS)), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    patterns=rows_of_anyone,
    records_of_one=st.integers(1, 4),
    first=st.integers(0, 12),
    slots=st.sampled_from([1, 2, 3, 5, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_patient_moves_the_sum_by_a_clip_at_most(kind, patterns, records_of_one, first, slots, seed):
    rng = np.random.default_rng(seed)
    records, rows = made_rows(kind, patterns, rng), len(patterns)
    dropped = np.zeros(rows, dtype=bool)
    dropped[first % rows : first % rows + records_of_one] = True
    limits = np.where(dropped, CLIP / dropped.sum(), CLIP)
    whole = total(records, torch.from_numpy(limits), slots)
    rest = total(without(records, dropped), torch.from_numpy(limits[~dropped]), slots)
    assert np.isfinite(whole).all()
    assert distance(whole, rest if dropped.sum() < rows else np.zeros_like(whole)) <= CLIP * (1 + NORM_SLACK)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(patterns=rows_of_anyone, seed=st.integers(0, 2**32 - 1))
def test_a_row_alone_is_cut_to_its_limit_in_exact_arithmetic(kind, patterns, seed):
    rng = np.random.default_rng(seed)
    records = made_rows(kind, patterns, rng)
    limits = np.exp2(rng.uniform(-20, 5, len(patterns)))
    for row, limit in enumerate(limits):
        only = without(records, np.arange(len(patterns)) != row)
        alone = total(only, torch.tensor([limit]), 1)
        assert distance(alone, 0 * alone) <= limit * (1 + 2.0**-19)


@settings(max_examples=40)
@given(patterns=rows_of_anyone, seed=st.integers(0, 2**32 - 1), uses=st.sampled_from([1, 2]))
def test_a_gram_norm_is_never_below_the_true_one(patterns, seed, uses):
    """Also where positions cancel; the true one is worked out with 64 bits from the stored numbers."""
    kind = "linear, Gram sequence" if uses == 1 else "linear, Gram of two uses"
    patterns = [tuple("random" if one == "not finite" else one for one in pair) for pair in patterns]
    records = made_rows(kind, patterns, np.random.default_rng(seed))
    a, b = (torch.cat(parts, 1).numpy().astype(EXACT) for parts in (records.inputs, records.gradients))
    measured = row_norms([records]).numpy()
    for row in range(len(patterns)):
        weight, bias = b[row].T @ a[row], torch.cat(records.gradients, 1)[row].sum(0).numpy().astype(EXACT)
        true = np.sqrt((weight**2).sum() + (bias**2).sum())
        assert measured[row] * (1 + 2.0**-20) >= float(true)


def test_a_row_of_zero_gradient_moves_nothing_when_all_others_change_their_slots():
    rng = np.random.default_rng(0)
    for kind, rows in (("linear", 4000), ("linear, stored sequence", 1000), ("linear, Gram sequence", 500)):
        patterns = [("zero", "zero"), *[("random", "random")] * rows]
        records = made_rows(kind, patterns, rng)
        first = np.arange(rows + 1) == 0
        limits = torch.full((rows + 1,), CLIP, dtype=torch.float64)
        moved = distance(total(records, limits, 64), total(without(records, first), limits[1:], 64))
        assert moved <= 1e-9 * CLIP
        # Cut to one norm each, they would give sums far larger than a clip.
        assert distance(total(records, limits, 64), np.zeros(1, EXACT)) > 10 * CLIP


class EmbeddingCancel(nn.Module):
    """Gradients of one code at six positions cancel in float64 (norm 0) and not in float32 (the sum): 2^43 got out."""

    def __init__(self):
        super().__init__()
        self.table, self.base = nn.Embedding(2, 1), nn.Linear(4, 1)

    def forward(self, x):
        ids = torch.zeros_like(x[:, :1]).long().repeat(1, 6)
        small = 2.0**-25
        parts = torch.tensor([1.0, small, small, small, small, -1.0 - 2.0**-23])
        secret = (x[:, :1] == 0.25).float() * 2.0**64
        e = self.table(ids).squeeze(2) * parts
        return self.base(x) + (e * secret).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", range(8))
def test_cancelling_codes_do_not_pass_the_clip_in_a_round(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    place = int(rng.integers(200))
    x[place, 0] = 0.25
    plan = PrivacyPlan(clip=1.0, noise_multiplier=1e-6, sampling_rate=1.0, rounds=1, steps_per_round=1)
    sums = []
    for kept in (np.arange(200), np.delete(np.arange(200), place)):
        torch.manual_seed(seed)
        train_round(
            EmbeddingCancel(), lambda logits, _: logits.squeeze(-1), x[kept], np.ones(len(kept), np.float32), kept,
            plan, LocalTraining(steps=1, learning_rate=1.0), divisor=1.0, randomness=SecureRandom(b"k" * 32),
            observer=lambda notice: sums.append(notice.noised_sum),
        )  # fmt: skip
    # The same key draws the same noise for both.
    assert np.linalg.norm(sums[0] - sums[1]) <= 1 + NORM_SLACK


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), most=st.sampled_from([1, 2, 7, 8192]))
def test_blocks_add_up_to_the_exact_sum(seed, most):
    """1e16 + 1 - 1e16, over and over: what plain addition loses at each step, folding keeps."""
    rng = np.random.default_rng(seed)
    terms = np.concatenate([s * np.array([1e16, 1.0, -1e16, 2.0**-20]) for s in rng.choice([-1.0, 1.0], 300)])
    made = Sum(torch.zeros(2))
    for term in terms:
        made.block(1, most).add_(torch.tensor([float(term), 0.0], dtype=torch.float64))
    error = abs(made.value()[0].item() - math.fsum(terms))
    depth = min(most, len(terms))
    assert error <= (depth * 2.0**-53 + (len(terms) * 2.0**-53) ** 2) * np.abs(terms).sum() + 2.0**-52
    if most == 1:
        assert error <= 1e-9
