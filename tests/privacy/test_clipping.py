"""If these fail, a patient's gradient may be larger than the clipping norm that the noise was made for."""

import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import nn

from datasites.privacy.clipping import ClippedSum
from datasites.privacy.layers import private_form
from datasites.privacy.records import UnsupportedModel, recording, row_records
from tests.privacy.models import KINDS
from tests.privacy.norms import row_norms

ROWS, CLIP = 10, 0.5


def losses(module, x, y):
    return nn.functional.binary_cross_entropy_with_logits(module(x).reshape(len(y)), y, reduction="none") * 3


def records(module, x, y):
    with recording(module) as made:
        values = losses(module, x, y)
    return row_records(made, values)


def clipped_sum(found, limits):
    total = ClippedSum()
    total.add(found, limits.double())
    return total.value()


def one_by_one(module, x, y):
    """Gradients of each row, from ordinary autograd on that row alone: [(norm, {parameter: gradient})]."""
    found = []
    for row in range(len(y)):
        own = list(module.parameters())
        gradients = torch.autograd.grad(losses(module, x[row : row + 1], y[row : row + 1])[0], own)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        found.append((norm, dict(zip(own, gradients, strict=True))))
    return found


@pytest.fixture(params=sorted(KINDS))
def case(request):
    torch.manual_seed(1)
    build, inputs = KINDS[request.param]
    return private_form(build()).eval(), inputs(ROWS), torch.randint(0, 2, (ROWS,)).float()


def test_norms_and_clipped_sums_equal_those_taken_row_by_row(case):
    module, x, y = case
    single = one_by_one(module, x, y)
    found = records(module, x, y)
    true = torch.stack([norm for norm, _ in single])
    # A norm from Gram products is a little too large on purpose.
    torch.testing.assert_close(row_norms(found).float(), true, rtol=1e-2, atol=1e-5)
    assert (row_norms(found) >= true * (1 - 1e-5)).all()
    assert max(norm for norm, _ in single) > CLIP  # otherwise nothing is clipped and nothing is shown
    total = clipped_sum(found, torch.full((ROWS,), CLIP))
    assert set(total) == set(module.parameters())
    for parameter, value in total.items():
        expected = sum(gradients[parameter] * min(1, CLIP / (norm + 1e-6)) for norm, gradients in single)
        torch.testing.assert_close(value.float(), expected, rtol=1e-2, atol=1e-4)


def test_each_row_is_cut_to_its_own_limit(case):
    module, x, y = case
    for row in range(3):
        limits = torch.zeros(ROWS)
        limits[row] = 0.01 * (row + 1)
        total = clipped_sum(records(module, x, y), limits)
        norm = torch.cat([value.flatten() for value in total.values()]).norm()
        assert norm <= 0.01 * (row + 1) * (1 + 1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("kind", ["attention", "conv1d", "gru", "sequence"])
def test_agrees_with_opacus_ghost_clipping(kind):
    torch.manual_seed(2)
    build, inputs = KINDS[kind]
    module, x, y = private_form(build()).train(), inputs(ROWS), torch.randint(0, 2, (ROWS,)).float()
    mine = clipped_sum(records(module, x, y), torch.full((ROWS,), CLIP))
    norms = row_norms(records(module, x, y))
    theirs = GradSampleModuleFastGradientClipping(module, max_grad_norm=CLIP, loss_reduction="sum")
    losses(theirs, x, y).sum().backward(retain_graph=True)
    torch.testing.assert_close(norms.float(), theirs.get_norm_sample(), rtol=2e-3, atol=1e-5)
    coefficients = theirs.get_clipping_coef().detach()
    theirs.zero_grad()
    theirs.disable_hooks()
    (coefficients * losses(theirs, x, y)).sum().backward()
    for parameter, value in mine.items():
        torch.testing.assert_close(value.float(), parameter.grad, rtol=2e-3, atol=1e-5)


def test_a_weight_used_outside_its_layer_brings_nothing_unclipped_in():
    class Borrowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.head = nn.Linear(6, 1)

        def forward(self, x):
            return self.head(self.layer(x) + 1000 * nn.functional.linear(x, self.layer.weight))

    torch.manual_seed(0)
    module, x, y = Borrowed().eval(), torch.randn(ROWS, 6), torch.ones(ROWS)
    found = records(module, x, y)
    limits = torch.zeros(ROWS)
    limits[0] = CLIP
    total = clipped_sum(found, limits)
    assert torch.cat([value.flatten() for value in total.values()]).norm() <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_none(kind, bad):
    torch.manual_seed(0)
    build, inputs = KINDS[kind]
    module, x, y = private_form(build()).eval(), inputs(ROWS), torch.ones(ROWS)
    limits, counted = torch.full((ROWS,), CLIP), torch.ones(ROWS, dtype=torch.bool)
    counted[3] = False
    without = ClippedSum()
    without.add(records(module, x, y), limits.double(), counted)
    found = records(module, x, y)
    for record in found:
        for part in (*record.inputs, *record.gradients):
            if part.is_floating_point():
                part[3] = bad
    spoilt = ClippedSum()
    spoilt.add(found, limits.double())
    for parameter, value in spoilt.value().items():
        assert (value == without.value()[parameter]).all()


def test_no_gradient_is_left_behind_in_the_model():
    module, x, y = KINDS["mlp"][0]().eval(), torch.randn(ROWS, 6), torch.ones(ROWS)
    clipped_sum(records(module, x, y), torch.full((ROWS,), CLIP))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(not layer._forward_hooks for layer in module.modules())


def test_a_cancelling_sequence_is_not_underestimated():
    # Two positions with opposite gradients of size 1e4: the true norm is small, float32 products are not.
    torch.manual_seed(0)
    module = nn.Linear(64, 64, bias=False)
    x = torch.randn(1, 2, 64) * 100
    x[0, 1] = x[0, 0] * (1 + 1e-4)
    with recording(module) as made:
        out = module(x)
        values = ((out[:, 0] - out[:, 1]).sum(1)) * 100
    found = row_records(made, values)
    true = torch.linalg.norm(found[0].gradients[0][0].double().T @ found[0].inputs[0][0].double())
    assert row_norms(found)[0] >= true * (1 - 1e-6)


@pytest.mark.parametrize("width", [64, 512, 2048])
def test_cancelling_positions_are_measured_at_any_width(width):
    # a, -a (1 + e), ...: what is left of the sum is far below the rounding of its terms in float32.
    torch.manual_seed(width)
    module = nn.Linear(width, width, bias=False)
    a = torch.randn(width) * 10
    x = torch.stack([a, a * (1 + 1e-3)] * 4)[None]
    signs = torch.tensor([1.0, -1.0] * 4)[:, None]
    with recording(module) as made:
        values = (module(x) * signs).sum((1, 2))
    found = row_records(made, values)
    true = torch.linalg.norm(found[0].gradients[0][0].double().T @ found[0].inputs[0][0].double())
    assert row_norms(found)[0] >= true
    released = clipped_sum(found, torch.ones(1))[module.weight]
    assert released.norm() <= 1 + 1e-5


@pytest.mark.parametrize("limit", [1e-3, 1.0])
@pytest.mark.parametrize(("inward", "outward"), [(3e18, 4e-23), (4e-23, 3e18), (1e-25, 1e-25), (1e28, 1e-30)])
def test_small_factors_do_not_hide_a_large_gradient(inward, outward, limit):
    # In float32 the square of 4e-23 is zero; the gradient of the weight is the product of both factors.
    torch.manual_seed(0)
    for x in (torch.randn(1, 6), torch.randn(1, 2, 6)):
        module = nn.Linear(6, 3)
        with recording(module) as made:
            values = (module(x * inward) * outward).flatten(1).sum(1)
        total = clipped_sum(row_records(made, values), torch.full((1,), limit))
        assert torch.cat([value.flatten().double() for value in total.values()]).norm() <= limit * (1 + 1e-4)


def test_a_gradient_beyond_float32_is_clipped_like_any_other():
    module = nn.Linear(2, 1)
    for scale, counts in ((1e22, True), (1e30, True), (float("inf"), False)):
        with recording(module) as made:
            values = (module(torch.full((1, 2), scale)) * scale)[:, 0]
        total = clipped_sum(row_records(made, values), torch.ones(1))
        norm = torch.cat([value.flatten() for value in total.values()]).norm()
        assert norm == pytest.approx(1.0 if counts else 0.0, rel=1e-6)


def test_two_layers_with_one_weight_are_refused():
    # Each layer's part would be within the norm that was measured, their sum would not.
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    with pytest.raises(UnsupportedModel, match="shares a parameter"):
        records(nn.Sequential(first, second, nn.Linear(6, 1)), torch.randn(ROWS, 6), torch.ones(ROWS))


class Flattened(nn.Module):
    """Puts positions where rows belong."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, x):
        return self.layer(x.reshape(-1, 5)).reshape(len(x), -1).sum(1)


class Overwritten(nn.Module):
    """Changes a layer's input after use."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        hidden = x * 1.0
        out = self.layer(hidden)
        hidden.mul_(100)
        return out


class OwnWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return x @ self.weight


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x).detach()


@pytest.mark.parametrize(
    ("module", "x", "words"),
    [
        (Flattened(), torch.randn(ROWS, 6, 5), "rows first"),
        (Overwritten(), torch.randn(ROWS, 6), "in place"),
        (OwnWeight(), torch.randn(ROWS, 6), "owns parameters"),
        (Detached(), torch.randn(ROWS, 6), "no trainable layer"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1)), torch.randn(ROWS, 6), "owns parameters"),
        (nn.Sequential(nn.Bilinear(6, 6, 1)), torch.randn(ROWS, 6), "owns parameters"),
    ],
)
def test_what_can_not_be_clipped_is_refused(module, x, words):
    with pytest.raises(UnsupportedModel, match=words):
        records(module.eval(), x, torch.ones(ROWS))


def test_a_subclass_of_a_known_layer_is_not_a_known_layer():
    class Amplified(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1000

    with pytest.raises(UnsupportedModel, match="Amplified"):
        records(nn.Sequential(Amplified(6, 1)), torch.randn(ROWS, 6), torch.ones(ROWS))
