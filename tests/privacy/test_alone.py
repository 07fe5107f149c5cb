"""If these fail, one patient's row can change what another's gives."""

import numpy as np
import pytest
import torch
from torch import nn

from datasites.privacy import alone
from datasites.privacy.batches import binary_loss
from datasites.privacy.clipping import clipped_sum, recording, row_records
from datasites.privacy.layers import private_form
from tests.privacy.models import KINDS
from tests.privacy.test_probe import MIXES, Mixing

ROWS = 12


def gradients(module, x, y, loss=binary_loss):
    with recording(module) as made:
        _, losses = alone.outputs(module, {0: x}, made, loss, y)
    return clipped_sum(row_records(made, losses), torch.ones(len(y)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_honest_models_give_what_they_give_in_a_batch(kind):
    torch.manual_seed(0)
    build, inputs = KINDS[kind]
    module, x, y = private_form(build()).eval(), inputs(ROWS), torch.ones(ROWS)
    together = module(x)
    output, losses = alone.outputs(module, {0: x}, loss=binary_loss, target=y)
    torch.testing.assert_close(output.reshape(together.shape), together)
    torch.testing.assert_close(losses, binary_loss(together, y))
    with recording(module) as made:
        values = binary_loss(module(x), y)
    expected = clipped_sum(row_records(made, values), torch.ones(ROWS))
    for parameter, value in gradients(module, x, y).items():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(MIXES) - {"random, not the row's own"}))
def test_a_mixing_model_sees_one_row(name):
    torch.manual_seed(0)
    module, x = Mixing(MIXES[name]).eval(), torch.randn(ROWS, 6)
    found, _ = alone.outputs(module, {0: x})
    for row in range(ROWS):
        torch.testing.assert_close(found[row], module(x[row : row + 1])[0], equal_nan=True)
    others = torch.randn(ROWS + 5, 6) * 100
    others[3] = x[0]
    torch.testing.assert_close(alone.outputs(module, {0: others})[0][3], found[0], equal_nan=True)


def test_random_numbers_are_refused():
    with pytest.raises(RuntimeError, match="random"):
        alone.outputs(Mixing(MIXES["random, not the row's own"]), {0: torch.randn(ROWS, 6)})


class Positions(nn.Module):
    """A layer whose input is the same for all rows: each row's gradient must still be its own."""

    def __init__(self):
        super().__init__()
        self.places, self.fc = nn.Embedding(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.fc(torch.tanh(self.places(torch.arange(3)[None].expand(len(x), -1)) * x[:, :, None]).sum(1))


def test_what_is_the_same_for_all_rows_gives_each_its_own_gradient():
    torch.manual_seed(0)
    module, x, y = Positions().eval(), torch.randn(ROWS, 3) * 30, torch.ones(ROWS)
    whole = gradients(module, x, y)
    parts = [gradients(module, x[row : row + 1], y[:1]) for row in range(ROWS)]
    for parameter, value in whole.items():
        torch.testing.assert_close(value, sum(part[parameter] for part in parts), rtol=1e-3, atol=1e-5)


class Keeping(nn.Module):
    """Writes rows into a tensor that it keeps."""

    def __init__(self, write):
        super().__init__()
        self.fc, self.seen, self.write = nn.Linear(6, 1), torch.zeros(1, 1), write

    def forward(self, x):
        self.write(x[:, :1], self.seen)
        return self.fc(x) + self.seen


@pytest.mark.parametrize("write", [
    lambda part, seen: seen.add_(part),
    lambda part, seen: seen.copy_(part),
    lambda part, seen: torch.norm(part, 2, 1, True, seen),
    lambda part, seen: nn.functional.normalize(part, 2.0, 1, 1e6, seen),
])  # fmt: skip
def test_a_row_can_not_be_written_into_what_is_kept(write):
    module = Keeping(write)
    with pytest.raises(RuntimeError):
        alone.outputs(module, {0: torch.randn(ROWS, 6)})
    assert (module.seen == 0).all()


@pytest.mark.parametrize("bad", [[], [0], [11], [2, 3, 9], list(range(ROWS))])
def test_a_row_that_raises_is_left_out_and_no_other(bad):
    def work(rows):
        if set(rows.tolist()) & set(bad):
            raise ValueError("a row")
        return rows.tolist()

    found = alone.or_none(work, torch.arange(ROWS))
    assert torch.cat([rows for rows, _ in found]).tolist() == list(range(ROWS))
    assert sorted(row for _, part in found if part for row in part) == sorted(set(range(ROWS)) - set(bad))


def test_scores_are_those_of_the_rows_and_none_for_one_that_raises():
    module = nn.Sequential(nn.Embedding(4, 1), nn.Flatten())
    codes = torch.tensor([[0], [3], [4], [1]])
    found = alone.scores(module, {0: codes}, most=3)
    torch.testing.assert_close(found[[0, 1, 3]], module(codes[[0, 1, 3]])[:, 0].detach())
    assert np.isnan(found[2].item())
