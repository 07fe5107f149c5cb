"""One patient, one gradient (I15): whatever mixes rows must be caught, and nothing else."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from datasites.privacy.layers import private_form
from datasites.privacy.model_inputs import binary_loss
from datasites.privacy.noise import SecureRandom
from datasites.privacy.probe import DependentRows, check_independence, invented
from datasites.study.schema import DataModel, Feature
from tests.privacy.models import KINDS, MIXES, Mixing

ROWS = 12


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_row_wise_models_pass(kind):
    build, inputs = KINDS[kind]
    y = np.random.default_rng(0).integers(0, 2, ROWS).astype(np.float32)
    for _ in range(5):
        check_independence(private_form(build()), None, inputs(ROWS).numpy(), y)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("name", MIXES)
def test_a_model_that_mixes_rows_is_caught(name):
    x = np.random.default_rng(1).normal(size=(ROWS, 6)).astype(np.float32)
    with pytest.raises(DependentRows):
        check_independence(Mixing(MIXES[name]), None, x, np.ones(ROWS, np.float32))


def test_a_model_that_remembers_earlier_rows_is_caught():
    class Remembering(Mixing):
        def __init__(self):
            super().__init__(self.recall)
            self.earlier = []

        def recall(self, h):
            self.earlier.append(h.detach().mean(0))
            return h + self.earlier[-2] if len(self.earlier) > 1 else h

    x = np.random.default_rng(1).normal(size=(ROWS, 6)).astype(np.float32)
    with pytest.raises(DependentRows):
        check_independence(Remembering(), None, x, np.ones(ROWS, np.float32))


def test_rows_that_are_all_alike_do_not_hide_a_mix():
    # Only rows that are really replaced by others show that these are centred over the batch.
    x = np.full((ROWS, 6), 0.3, dtype=np.float32)
    with pytest.raises(DependentRows):
        check_independence(Mixing(MIXES["centred over the batch"]), None, x, np.ones(ROWS, np.float32))


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, target: binary_loss(out, target) / len(target),
        lambda out, target: binary_loss(out, target).mean().expand(len(target)),
        lambda out, target: binary_loss(out, target) * (1 + target.mean()),
        lambda out, target: binary_loss(out - out.mean(), target),
        lambda out, target: binary_loss(out, target).sum(),
    ],
)
def test_a_loss_that_mixes_rows_is_caught(loss):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(ROWS, 6)).astype(np.float32), rng.integers(0, 2, ROWS).astype(np.float32)
    with pytest.raises(DependentRows):
        check_independence(KINDS["mlp"][0](), loss, x, y)


class OnALevel(nn.Module):
    """Mixes rows where a category has its second level, encoded as the data model does; no other number does it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h + (x[:, 1:2] == 0.5).float() * h.mean(0))


LEVELS = DataModel(
    features=(
        Feature(name="age", type="number", low=18.0, high=98.0, centre=58.0, scale=20.0),
        Feature(name="ward", type="category", levels=("a", "b", "c"), centres=(0.5, 0.25)),
    ),
    label=Feature(name="died", type="boolean"),
)


def test_a_model_that_mixes_ordinary_rows_only_is_caught_on_invented_ones():
    shapes = {0: torch.zeros(0, 3)}, torch.zeros(0)
    for number in range(5):
        source = SecureRandom(bytes([number]) * 32).generator("test")
        x, y = invented(*shapes, 16, source, LEVELS)
        with pytest.raises(DependentRows):
            check_independence(OnALevel(), None, x, y)
    # Numbers that no data model made would have missed it.
    x, y = invented(*shapes, 16, source)
    check_independence(OnALevel(), None, x, y)


def test_what_is_invented_has_the_shapes_of_rows_and_nothing_else_of_them():
    like = {"x": torch.full((9, 4, 2), 1e9), "codes": torch.full((9, 3), 77)}, torch.full((9,), 5.0)
    made, y = invented(*like, 16, np.random.default_rng(0))
    assert made["x"].shape == (16, 4, 2)
    assert made["x"].abs().max() < 10
    assert made["codes"].shape == (16, 3)
    assert set(made["codes"].flatten().tolist()) == {0, 1}
    assert set(y.tolist()) == {0.0, 1.0}


class Transposed(nn.Module):
    """Outputs are row by row, but inside, a layer sees positions as rows: clipping would cut the wrong thing."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 1), nn.Linear(ROWS, 1)

    def forward(self, x):
        return self.head(self.inner(x.transpose(0, 1)).transpose(0, 1)[..., 0])


def test_a_layer_with_rows_in_another_dimension_is_caught_although_outputs_are_independent():
    x = np.random.default_rng(1).normal(size=(ROWS, ROWS, 5)).astype(np.float32)
    with pytest.raises((DependentRows, ValueError)):
        check_independence(Transposed(), None, x, np.ones(ROWS, np.float32))


def test_batch_norm_in_training_form_is_refused_before_any_row():
    module = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    with pytest.raises(ValueError, match="BatchNorm1d"):
        check_independence(module, None, np.zeros((ROWS, 6), np.float32), np.ones(ROWS, np.float32))


def test_an_error_names_the_layer_and_no_value():
    x = np.full((ROWS, 6), 0.456, dtype=np.float32)
    with pytest.raises(DependentRows) as caught:
        check_independence(Mixing(MIXES["batch size"]), None, x, np.ones(ROWS, np.float32))
    assert not re.search(r"\d\.\d", str(caught.value))
    assert "remove what mixes rows" in str(caught.value)


def test_one_row_can_not_be_probed():
    with pytest.raises(ValueError, match="two rows"):
        check_independence(KINDS["mlp"][0](), None, np.zeros((1, 6), np.float32), np.ones(1, np.float32))
