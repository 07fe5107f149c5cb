"""If these fail, one patient's row can change what another's gives (I15)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasites.privacy import per_row
from datasites.privacy.clipping import ClippedSum
from datasites.privacy.layers import private_form
from datasites.privacy.model_inputs import binary_loss
from datasites.privacy.records import recording, row_records
from tests.privacy.models import KINDS, MIXES, Mixing

ROWS = 12


def gradients(module, x, y, loss=binary_loss):
    with recording(module) as made:
        losses = per_row.run(module, {0: x}, made, loss, y).losses
    return clipped(row_records(made, losses), len(y))


def clipped(records, rows):
    total = ClippedSum()
    total.add(records, torch.ones(rows, dtype=torch.float64))
    return total.value()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_honest_models_give_what_they_give_in_a_batch(kind):
    torch.manual_seed(0)
    build, inputs = KINDS[kind]
    module, x, y = private_form(build()).eval(), inputs(ROWS), torch.ones(ROWS)
    together = module(x)
    found = per_row.run(module, {0: x}, loss=binary_loss, target=y)
    torch.testing.assert_close(found.outputs.reshape(together.shape), together)
    torch.testing.assert_close(found.losses, binary_loss(together, y))
    assert found.fit.all()
    with recording(module) as made:
        values = binary_loss(module(x), y)
    expected = clipped(row_records(made, values), ROWS)
    for parameter, value in gradients(module, x, y).items():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("name", sorted(set(MIXES) - {"random, not the row's own"}))
def test_a_mixing_model_sees_one_row(name):
    torch.manual_seed(0)
    module, x = Mixing(MIXES[name]).eval(), torch.randn(ROWS, 6)
    found = per_row.run(module, {0: x}).outputs
    for row in range(ROWS):
        torch.testing.assert_close(found[row], module(x[row : row + 1])[0], equal_nan=True)
    others = torch.randn(ROWS + 5, 6) * 100
    others[3] = x[0]
    torch.testing.assert_close(per_row.run(module, {0: others}).outputs[3], found[0], equal_nan=True)


def test_random_numbers_are_refused():
    with pytest.raises(RuntimeError, match="random"):
        per_row.run(Mixing(MIXES["random, not the row's own"]), {0: torch.randn(ROWS, 6)})


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
        per_row.run(module, {0: torch.randn(ROWS, 6)})
    assert (module.seen == 0).all()


class Coded(nn.Module):
    """Codes and classes that come from a row's numbers, as they may come from any."""

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(4, 3), nn.Linear(3, 5)

    def forward(self, x):
        codes = x.long()
        kinds = F.one_hot(codes[:, 1], 3).float() @ torch.ones(3, 1)
        return self.fc(self.table(codes[:, 0])) + kinds + torch.embedding(self.table.weight, codes[:, 0])[:, :1]


LOSSES = {
    "cross_entropy": lambda out, target: F.cross_entropy(out, target.long(), reduction="none"),
    "nll_loss": lambda out, target: F.nll_loss(F.log_softmax(out, 1), target.long(), reduction="none"),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("bad", [(0, -1.0), (0, 4.0), (0, 1e30), (1, 3.0), (1, -7.0), ("y", 5.0), ("y", -3.0)])
def test_what_is_out_of_range_marks_its_row_and_changes_no_other(name, bad):
    torch.manual_seed(0)
    module, loss = Coded().eval(), LOSSES[name]
    x, y = torch.randint(0, 3, (ROWS, 2)).float(), torch.randint(0, 5, (ROWS,)).float()
    clean = per_row.run(module, {0: x}, loss=loss, target=y)
    assert clean.fit.all()
    torch.testing.assert_close(clean.losses, loss(module(x), y))
    where, value = bad
    if where == "y":
        y[7] = value
    else:
        x[7, where] = value
    spoilt = per_row.run(module, {0: x}, loss=loss, target=y)
    assert spoilt.fit.tolist() == [row != 7 for row in range(ROWS)]
    others = spoilt.fit
    assert (spoilt.outputs[others] == clean.outputs[others]).all()
    assert (spoilt.losses[others] == clean.losses[others]).all()


def test_an_ignored_class_is_no_mark():
    target = torch.tensor([0.0, -100.0, 2.0])
    found = per_row.run(nn.Linear(2, 3), {0: torch.ones(3, 2)}, loss=LOSSES["cross_entropy"], target=target)
    assert found.fit.all()
    assert found.losses[1] == 0


def test_a_code_that_is_no_rows_own_marks_all():
    class Beyond(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.fc = nn.Embedding(3, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.fc(x) + self.places(torch.arange(4))[3]

    assert not per_row.run(Beyond(), {0: torch.ones(ROWS, 2)}).fit.any()


def test_nothing_is_caught_around_rows():
    class Raising(nn.Module):
        def forward(self, x):
            raise ValueError("a row")

    with pytest.raises(ValueError, match="a row"):
        per_row.scores(Raising(), {0: torch.ones(3, 2)}, slots=2)


@pytest.mark.parametrize(("rows", "calls"), [(0, 0), (1, 1), (4, 1), (5, 2), (9, 3)])
def test_scores_are_those_of_the_rows_in_slots_and_none_for_one_out_of_range(rows, calls):
    seen = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes = nn.Embedding(4, 1)

        def forward(self, x):
            seen.append(len(x))
            return self.codes(x)[:, 0]

    module = Counting()
    codes = torch.arange(rows).reshape(-1, 1) % 5
    found = per_row.scores(module, {0: codes}, slots=4)
    good = codes[:, 0] < 4
    torch.testing.assert_close(found[good], module.codes(codes[good])[:, 0, 0].detach())
    assert found[~good].isnan().all()
    assert len(found) == rows
    assert len(seen) == calls
