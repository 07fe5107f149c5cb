"""What leaves a round must be what the plan says: noise, clipping by patient, sampling, steps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from datasites.privacy import trainer
from datasites.privacy.noise import SecureRandom, noised
from datasites.privacy.parameters import flatten
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.probe import DependentRows
from datasites.privacy.records import UnsupportedModel, rows_of
from datasites.privacy.trainer import Mechanism, StepsExhausted, TrainingRefused, train_round
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import NORM_SLACK, ring_terms
from tests.privacy.models import KINDS

TINY = 1e-6  # a noise multiplier that leaves gradients visible


def plan(**changes):
    terms = {"clip": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.5, "rounds": 10, "steps_per_round": 1}
    return PrivacyPlan(**{**terms, **changes})


def sgd(steps=1, rate=1.0, **options):
    return LocalTraining(steps=steps, learning_rate=rate, **options)


def silent(logits, target):
    """A loss without gradient: what is released is noise alone."""
    return (logits * 0).sum(1)


def loud(logits, target):
    """A loss with an enormous gradient in every row."""
    return (logits * 1e6).sum(1)


def linear(features, outputs=1):
    module = nn.Linear(features, outputs)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def rows(n, features=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.float32), np.arange(n)


# ---- noise


@pytest.mark.parametrize(("multiplier", "clip", "divisor", "steps"), [(1.3, 0.7, 20.0, 1), (2.0, 3.0, 5.0, 4)])
def test_released_noise_has_the_planned_size(multiplier, clip, divisor, steps):
    x, y, patients = rows(6, features=9)
    terms = plan(noise_multiplier=multiplier, clip=clip, steps_per_round=steps)
    released = np.concatenate(
        [
            train_round(linear(9, 3000), silent, x, y, patients, terms, sgd(steps, 0.1), divisor=divisor).update
            for _ in range(4)
        ]
    ).astype(np.float64)
    sigma = 0.1 * multiplier * clip / divisor * math.sqrt(steps)
    # 120,000 numbers: 99 % of sample sds lie within 0.53 % of the true one, well inside the 2 % that is asked.
    n = len(released)
    low, high = (math.sqrt(stats.chi2.ppf(p, n - 1) / (n - 1)) for p in (0.005, 0.995))
    assert high - low < 0.02
    ratio = released.std(ddof=1) / sigma
    assert 0.98 < ratio < 1.02
    assert abs(released.mean()) < 5 * sigma / math.sqrt(n)
    assert stats.kstest(released / sigma, "norm").pvalue > 1e-6


def test_noise_is_independent_over_rounds_steps_and_coordinates():
    x, y, patients = rows(6, features=9)
    first, second = (
        train_round(linear(9, 3000), silent, x, y, patients, plan(), sgd(), divisor=1.0).update for _ in range(2)
    )
    seen = []
    train_round(
        linear(9, 3000),
        silent,
        x,
        y,
        patients,
        plan(steps_per_round=2),
        sgd(2),
        divisor=1.0,
        observer=lambda notice: seen.append(notice.noised_sum),
    )
    n = len(first)
    for a, b in ((first, second), (seen[0], seen[1]), (first[:-1], first[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(n) < 5
        assert not np.isin(a, b).all()


def test_a_seeded_framework_does_not_repeat_an_update():
    x, y, patients = rows(40)
    updates = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        module = linear(4)
        updates.append(train_round(module, None, x, y, patients, plan(), sgd(), divisor=20.0).update)
    assert (updates[0] != updates[1]).all()


def test_an_empty_batch_and_an_empty_table_still_release_noise():
    x, y, patients = rows(5)
    for part in (slice(0, 5), slice(0, 0)):
        result = train_round(
            linear(4), None, x[part], y[part], patients[part], plan(sampling_rate=1e-9), sgd(), divisor=1.0
        )
        assert np.abs(result.update).min() > 0


# ---- clipping, by patient


def test_no_patient_moves_the_sum_by_more_than_the_clip_however_loud():
    x, y, _ = rows(50)
    for patients, people in ((np.zeros(50), 1), (np.arange(50) % 3, 3)):
        result = train_round(
            linear(4),
            loud,
            np.abs(x),
            y,
            patients,
            plan(sampling_rate=1.0, noise_multiplier=TINY, clip=0.25),
            sgd(),
            divisor=1.0,
        )
        moved = np.linalg.norm(result.update)
        assert moved <= 0.25 * people * (1 + 1e-4)
        assert moved > 0.25 * people * 0.5  # all rows pull one way, so the bound is nearly reached


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_adding_one_patient_moves_the_sum_by_at_most_the_clip(kind):
    torch.manual_seed(0)
    build, inputs = KINDS[kind]
    module, x = trainer_form(build), inputs(9).numpy()
    y, patients = np.ones(9, np.float32), np.array([0, 1, 2, 3, 4, 5, 6, 6, 6])
    start = flatten(module)
    sums = []
    for known in (slice(0, 9), slice(0, 6)):
        trainer.parameters.unflatten(module, start)
        terms = plan(sampling_rate=1.0, noise_multiplier=TINY, clip=0.05)
        result = train_round(module, None, x[known], y[known], patients[known], terms, sgd(), divisor=1.0)
        sums.append(result.update)
    moved = np.linalg.norm(sums[0] - sums[1])
    assert 0.01 < moved <= 0.05 * (1 + 1e-2)


def trainer_form(build):
    from datasites.privacy.layers import private_form

    return private_form(build())


def test_a_parameter_listed_twice_is_refused():
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x)

        def parameters(self, recurse=True):
            return [*super().parameters(recurse), self.layer.weight]

    x, y, patients = rows(10)
    with pytest.raises(TrainingRefused, match="twice"):
        train_round(Greedy(), None, x, y, patients, plan(), sgd(), divisor=1.0)


def test_the_divisor_is_public_not_the_number_of_rows():
    x, y, _ = rows(60)
    terms = plan(sampling_rate=1.0, noise_multiplier=TINY)
    moved = []
    for n in (30, 60):
        part = (np.abs(x[:n]), y[:n], np.arange(n))
        moved.append(np.linalg.norm(train_round(linear(4), loud, *part, terms, sgd(), divisor=10.0).update))
    assert moved[1] / moved[0] == pytest.approx(2.0, rel=0.1)


# ---- sampling


def test_batches_are_poisson_samples_of_patients():
    x, y, _ = rows(120)
    patients = np.repeat(np.arange(60), 2)
    # All records pull one way and beyond their limits: the sum is as long as the number of patients in it. A model
    # can't be asked: it sees one row.
    x[:] = 1.0
    seen = []
    steps, rate = 1500, 0.3
    result = train_round(
        linear(4), loud, x, y, patients, plan(sampling_rate=rate, noise_multiplier=TINY, steps_per_round=steps),
        sgd(steps, 1e-3), divisor=18.0, observer=lambda notice: seen.append(np.linalg.norm(notice.noised_sum)),
    )  # fmt: skip
    assert result.steps == steps
    taken = np.array(seen)
    assert np.abs(taken - np.rint(taken)).max() < 1e-3
    assert taken.mean() == pytest.approx(60 * rate, abs=5 * math.sqrt(60 * rate * (1 - rate) / steps))
    spread = taken.var(ddof=1) / (60 * rate * (1 - rate))
    assert 1e-5 < stats.chi2.cdf(spread * (steps - 1), steps - 1) < 1 - 1e-5


# ---- steps


def test_more_steps_than_the_plan_are_refused_before_the_first():
    x, y, patients = rows(5)
    module = linear(4)
    with pytest.raises(StepsExhausted, match="1501"):
        train_round(module, None, x, y, patients, plan(steps_per_round=1500), sgd(1501), divisor=1.0)
    assert (flatten(module) == 0).all()


def test_a_release_is_the_mechanism_that_is_priced_to_the_last_bit():
    """The noise is that of sensitivity clip x (1 + slack): 0.2 % more than of the clip, too little for statistics."""
    terms, values, key = plan(noise_multiplier=1.7, clip=0.3), np.linspace(-1, 1, 9), b"k" * 32
    released = Mechanism(terms, SecureRandom(key)).release(values)
    assert (released == noised(values, 0.3 * (1 + NORM_SLACK), 1.7, SecureRandom(key))).all()


def test_the_mechanism_counts_and_stops_by_itself():
    mechanism = Mechanism(plan(steps_per_round=3))
    for _ in range(3):
        mechanism.release(np.zeros(2))
    with pytest.raises(StepsExhausted, match="3 steps"):
        mechanism.release(np.zeros(2))
    assert mechanism.steps == 3


def test_a_trainer_that_runs_one_step_more_is_caught(monkeypatch):
    # Every loop of the trainer runs once more than it should; the count is kept where noise is added.
    x, y, patients = rows(5)
    monkeypatch.setattr(
        trainer, "range", lambda *bounds: range(bounds[0] + 1) if len(bounds) == 1 else range(*bounds), raising=False
    )
    with pytest.raises(StepsExhausted):
        train_round(linear(4), None, x, y, patients, plan(steps_per_round=3), sgd(3), divisor=1.0)


def test_steps_are_counted_where_noise_is_added():
    x, y, patients = rows(5)
    seen = []
    result = train_round(
        linear(4), None, x, y, patients, plan(steps_per_round=5), sgd(2), divisor=1.0, observer=seen.append
    )
    assert result.steps == 2
    assert [notice.step for notice in seen] == [1, 2]


# ---- what leaves


def test_the_update_is_made_of_noised_sums_alone():
    x, y, patients = rows(40)
    seen = []
    result = train_round(
        linear(4), None, x, y, patients, plan(steps_per_round=6), sgd(6, 0.3), divisor=20.0, observer=seen.append
    )
    expected = -0.3 / 20.0 * sum(notice.noised_sum for notice in seen)
    np.testing.assert_allclose(result.update, expected, rtol=1e-5, atol=1e-7)
    assert result.update.dtype == np.float32


def test_batch_norm_never_trains_and_its_statistics_never_leave():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x, y, patients = rows(20)
    with pytest.raises(UnsupportedModel, match="BatchNorm1d"):
        train_round(module, None, x, y, patients, plan(), sgd(), divisor=1.0)
    still = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1))
    result = train_round(still, None, x, y, patients, plan(), sgd(), divisor=1.0)
    assert (still[1].running_mean == 0).all()
    assert result.update.shape == (25,)


def test_frozen_parameters_stay_and_get_no_noise():
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    x, y, patients = rows(20)
    update = train_round(module, None, x, y, patients, plan(), sgd(), divisor=1.0).update
    assert (update[:15] == 0).all()
    assert (update[15:] != 0).all()


def test_errors_hold_no_number_from_the_rows():
    x, y, patients = rows(37)
    with pytest.raises(DependentRows) as caught:
        train_round(linear(4), lambda out, target: out.mean(), x, y, patients, plan(), sgd(), divisor=1.0)
    assert not any(character.isdigit() for character in str(caught.value))


def test_a_model_that_mixes_rows_is_stopped_before_the_first_step():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            out = self.layer(x)
            return out - out.mean(0)

    x, y, patients = rows(50)
    seen = []
    with pytest.raises(DependentRows):
        train_round(Mixing(), None, x, y, patients, plan(), sgd(), divisor=1.0, observer=seen.append)
    assert seen == []


# ---- post-processing


def gradients_of(**options):
    x, y, patients = rows(40)
    seen = []
    module = linear(4)
    steps = 4
    extra = {key: options.pop(key) for key in ("round",) if key in options}
    update = train_round(
        module,
        None,
        x,
        y,
        patients,
        plan(steps_per_round=steps, rounds=2),
        sgd(steps, 0.1, **options),
        divisor=20.0,
        observer=lambda notice: seen.append(notice.noised_sum / 20.0),
        **extra,
    ).update
    return update, seen


def test_momentum():
    update, seen = gradients_of(momentum=0.9)
    weights, velocity = np.zeros(5), np.zeros(5)
    for gradient in seen:
        velocity = 0.9 * velocity + gradient
        weights -= 0.1 * velocity
    np.testing.assert_allclose(update, weights, rtol=1e-5, atol=1e-7)


def test_adam_equals_torch():
    update, seen = gradients_of(optimiser="adam")
    parameter = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=0.1)
    for gradient in seen:
        parameter.grad = torch.from_numpy(gradient)
        adam.step()
    np.testing.assert_allclose(update, parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_cosine_schedule_spans_the_study():
    update, seen = gradients_of(schedule="cosine", round=2)
    rates = [0.05 * (1 + math.cos(math.pi * (4 + step) / 8)) for step in range(4)]
    expected = -sum(rate * gradient for rate, gradient in zip(rates, seen, strict=True))
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


def test_proximal_term_pulls_towards_the_global_model():
    update, seen = gradients_of(proximal=0.5)
    weights = np.zeros(5)
    for gradient in seen:
        weights = weights - 0.1 * (gradient + 0.5 * weights)
    np.testing.assert_allclose(update, weights, rtol=1e-5, atol=1e-7)


# ---- microbatches and inputs


def seen_sum(module, loss, x, y, patients, slots=64, clip=1.0):
    """The clipped sum of all rows, with noise of sd 1e-6 of it."""
    terms, seen = plan(sampling_rate=1.0, noise_multiplier=TINY, clip=clip), []
    train_round(
        module, loss, x, y, patients, terms, sgd(slots=slots), divisor=1.0, observer=seen.append,
        randomness=SecureRandom(b"s" * 32),
    )  # fmt: skip
    return seen[0].noised_sum


def test_the_number_of_slots_changes_nothing():
    x, y, patients = rows(60)
    sums = [seen_sum(linear(4), None, x, y, patients, slots) for slots in (1, 7, 60, 64, 4096)]
    for other in sums[1:]:
        np.testing.assert_allclose(sums[0], other, rtol=1e-6, atol=1e-6)


class Counting(nn.Module):
    """Writes down how often it is called, and how many rows `vmap` runs it on."""

    def __init__(self, features=4):
        super().__init__()
        self.fc, self.calls = nn.Linear(features, 1), []

    def forward(self, x):
        self.calls.append(rows_of(x)[0].shape)
        return self.fc(x)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 16, 17])
def test_calls_and_shapes_depend_on_rows_over_slots_alone(count):
    x, y, patients = rows(count)
    module = Counting()
    if count:
        x[0] = np.nan
    seen_sum(module, None, x, y, patients, slots=8)
    probed = Counting()
    seen_sum(probed, None, x[:0], y[:0], patients[:0], slots=8)
    calls = module.calls[len(probed.calls) :]
    assert len(calls) == -(-count // 8)
    assert {shape[0] for shape in calls} <= {8}


def test_what_lies_in_empty_slots_changes_no_bit(monkeypatch):
    torch.manual_seed(0)
    for kind, (build, inputs) in sorted(KINDS.items()):
        x, y = inputs(9).numpy(), np.ones(9, np.float32)
        module = trainer_form(build).eval()
        batch = trainer._Batch(
            module, trainer.binary_loss, {0: torch.from_numpy(x)}, torch.from_numpy(y), torch.ones(9).double(), 16,
            torch.device("cpu"), False,
        )  # fmt: skip
        clean = batch.clipped_sum(np.arange(9))
        real = trainer.slots_of

        def rubbish(tensors, rows, slots, real=real):
            made = real(tensors, rows, slots)
            for part in made.values():
                part[len(rows) :] = 3e38 if part.is_floating_point() else 7
            return made

        monkeypatch.setattr(trainer, "slots_of", rubbish)
        assert (batch.clipped_sum(np.arange(9)) == clean).all(), kind
        monkeypatch.setattr(trainer, "slots_of", real)


def test_nothing_is_caught_around_rows():
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 1)

        def forward(self, x):
            return self.fc(x) + torch.gather(x, 1, (x[:, :1] > 50).long() * 57)

    x, y, patients = rows(20)
    assert np.isfinite(seen_sum(Raising(), None, x, y, patients)).all()
    x[3, 0] = 60.0
    with pytest.raises(RuntimeError, match="57"):
        seen_sum(Raising(), None, x, y, patients)


class Coded(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes, self.fc = nn.Embedding(3, 2), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(torch.cat([self.codes(x[:, 0].long()), x[:, 1:3]], 1))


def classes(logits, target):
    return F.cross_entropy(logits, target.long(), reduction="none")


def test_several_classes_train_and_rows_out_of_range_count_as_none():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 3, 30), *rng.normal(size=(2, 30))], 1).astype(np.float32)
    y = rng.integers(0, 5, 30).astype(np.float32)
    module = Coded()
    start = flatten(module)

    def total(chosen):
        trainer.parameters.unflatten(module, start)
        return seen_sum(module, classes, x[chosen], y[chosen], np.arange(30)[chosen])

    whole = total(slice(None))
    assert np.linalg.norm(whole) > 5
    without = total(slice(0, 27))
    x[27, 0], y[28], y[29] = 3.0, 5.0, np.nan
    np.testing.assert_allclose(total(slice(None)), without, atol=1e-5)


def test_several_inputs_by_position_and_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes, self.head = nn.Embedding(7, 3), nn.Linear(5, 1)

        def forward(self, numbers, codes):
            return self.head(torch.cat([numbers, self.codes(codes)], 1))

    rng = np.random.default_rng(0)
    numbers, codes = rng.normal(size=(20, 2)).astype(np.float32), rng.integers(0, 7, 20)
    for x in ((numbers, codes), {"codes": codes, "numbers": numbers}):
        update = train_round(Two(), None, x, np.ones(20), np.arange(20), plan(), sgd(), divisor=1.0).update
        assert update.shape == (27,)


def test_it_learns():
    x, y, patients = rows(2000)
    module = linear(4)
    for number in range(1, 6):
        train_round(
            module,
            None,
            x,
            y,
            patients,
            plan(steps_per_round=5),
            sgd(5, 2.0),
            divisor=1000.0,
            round=number,
        )
    right = ((module(torch.from_numpy(x))[:, 0] > 0).numpy() == (y > 0)).mean()
    assert right > 0.9


# ---- distributed mode

SHARED = {"mode": "distributed", "honest": 4, "noise_multiplier": 2.0}


def ring(terms, length, hospitals=4, slack=NORM_SLACK):
    noise = {"noise_multiplier": terms.noise_multiplier, "honest": terms.honest}
    return ring_terms(clip=terms.clip, hospitals=hospitals, length=length, slack=slack, **noise)


def shared_round(module, loss, x, y, patients, terms, key=None, terms_of_ring=None):
    lies = terms_of_ring or ring(terms, sum(p.numel() for p in module.parameters()))
    result = train_round(
        module, loss, x, y, patients, terms, sgd(1, 0.5), divisor=8.0, ring=lies, randomness=SecureRandom(key)
    )
    return result.update


def test_a_distributed_release_is_whole_grid_steps_and_sums_to_the_planned_noise():
    x, y, patients = rows(6, features=9)
    terms = plan(**SHARED)
    lies = ring(terms, 30_000)
    updates = [
        shared_round(linear(9, 3000), silent, x, y, patients, terms, bytes([number]) * 32) for number in range(4)
    ]
    assert all(update.dtype == np.int64 for update in updates)
    together = sum(updates) * lies.grid
    # 2 % of 30,000 numbers are nearly five sd of their sample sd.
    assert updates[0].std() * lies.grid == pytest.approx(lies.deviation, rel=0.02)
    assert together.std() == pytest.approx(2.0 * lies.sensitivity, rel=0.02)
    assert abs(np.corrcoef(updates[0], updates[1])[0, 1]) * math.sqrt(len(updates[0])) < 5


def test_a_distributed_release_is_the_clipped_sum_itself():
    x, y, patients = rows(30)
    terms = plan(sampling_rate=1.0, mode="distributed", honest=1, noise_multiplier=1e-2)
    lies = ring(terms, 5)
    released = shared_round(linear(4), None, x, y, patients, terms) * lies.grid
    local = train_round(
        linear(4), None, x, y, patients, plan(sampling_rate=1.0, noise_multiplier=TINY), sgd(1, 0.5), divisor=8.0
    )
    np.testing.assert_allclose(-0.5 / 8.0 * released, local.update, atol=8 * 0.5 / 8.0 * 1e-2)
    assert np.abs(released).max() > 1


@pytest.mark.parametrize("exponent", [0, 8, 16, 20, 21, 24, 32, 40, 42, 44, 48, 53, 60])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_size_of_a_models_numbers_rounds_the_noise_away(exponent, sign, monkeypatch):
    """Near 2^42 one unit in the last place of a parameter is about a clip: noise must not pass through parameters."""
    x, y, patients = rows(6, features=9)
    terms = plan(**SHARED)
    lies, module = ring(terms, 210_000), linear(9, 21_000)
    vector = np.full(210_000, sign * 2.0**exponent, np.float32)
    if exponent > 20:
        with pytest.raises(ValueError, match="1.04858e\\+06"):
            trainer.parameters.receive(module, vector)
        monkeypatch.setattr(trainer.parameters, "PARAMETER_BOUND", math.inf)
    trainer.parameters.receive(module, vector)
    released = shared_round(module, silent, x, y, patients, terms, bytes([exponent + 100 * (sign > 0)]) * 32)
    assert released.var() * lies.grid**2 == pytest.approx(lies.deviation**2, rel=0.02)
    assert len(np.unique(released)) > 100


@pytest.mark.parametrize(
    ("terms", "local", "options", "words"),
    [
        (plan(**SHARED), sgd(), {}, "ring"),
        (plan(), sgd(), {"ring": ring(plan(**SHARED), 5)}, "ring"),
        (plan(**SHARED), sgd(), {"ring": ring(plan(**{**SHARED, "noise_multiplier": 1.9}), 5)}, "the plan prices"),
        (plan(**SHARED), sgd(), {"ring": ring(plan(**SHARED, clip=0.9), 5)}, "the plan prices"),
        (plan(**SHARED), sgd(), {"ring": ring(plan(**{**SHARED, "honest": 5}), 5)}, "the plan prices"),
        (plan(**SHARED), sgd(), {"ring": ring(plan(**SHARED), 5, slack=0.0)}, "the plan prices"),
        (plan(**SHARED), sgd(), {"ring": ring(plan(**SHARED), 4)}, "the plan prices"),
        (plan(**SHARED), sgd(momentum=0.9), {"ring": ring(plan(**SHARED), 5)}, "plain SGD"),
        (plan(**SHARED), sgd(optimiser="adam"), {"ring": ring(plan(**SHARED), 5)}, "plain SGD"),
        (plan(**SHARED), sgd(proximal=0.1), {"ring": ring(plan(**SHARED), 5)}, "plain SGD"),
        (plan(), sgd(), {"round": 11}, "round 11"),
        (plan(), sgd(), {"divisor": 0.0}, "divisor"),
    ],
)
def test_terms_outside_the_plan_are_refused(terms, local, options, words):
    x, y, patients = rows(5)
    with pytest.raises(TrainingRefused, match=words):
        train_round(linear(4), None, x, y, patients, terms, local, **{"divisor": 1.0, **options})


def test_a_model_larger_than_the_rounding_is_proved_for_is_refused(monkeypatch):
    monkeypatch.setattr(trainer, "LARGEST_MODEL", 3)
    x, y, patients = rows(40)
    with pytest.raises(TrainingRefused, match="more than 3 parameters; rounding is accounted for"):
        shared_round(linear(4), None, x, y, patients, plan(**SHARED))


def test_a_sum_is_cut_before_its_noise_and_stays_within_the_bound_with_it():
    # Patients beyond counting pull one way: cut after its noise, the release would have next to none.
    x, y, patients = rows(400, features=3)
    x[:] = 1.0
    terms = plan(**SHARED, sampling_rate=1.0)
    wide = ring(terms, 4)
    tight = wide.model_copy(update={"cut": 3.0, "bound": 3.0 + 10 * wide.deviation})
    released = np.array(
        [shared_round(linear(3, 1), loud, x, y, patients, terms, terms_of_ring=tight) for _ in range(200)]
    )
    assert np.abs(released).max() * tight.grid < tight.bound
    assert np.std(released, axis=0) * tight.grid == pytest.approx(tight.deviation, rel=0.25)
    assert released.mean(0) * tight.grid == pytest.approx(3.0, abs=5 * tight.deviation / math.sqrt(200))


def test_the_same_key_gives_the_same_bytes_and_another_independent_ones():
    x, y, patients = rows(40)
    terms = plan(**SHARED)
    first, again, other = (
        shared_round(linear(4), None, x, y, patients, terms, key) for key in (b"a" * 32, b"a" * 32, b"b" * 32)
    )
    assert first.tobytes() == again.tobytes()
    assert (first != other).all()
    local = [
        train_round(
            linear(4), None, x, y, patients, plan(steps_per_round=3), sgd(3), divisor=20.0,
            randomness=SecureRandom(b"a" * 32),
        ).update
        for _ in range(2)
    ]  # fmt: skip
    assert local[0].tobytes() == local[1].tobytes()


def test_cutting_the_sum_moves_no_two_sums_apart():
    rng = np.random.default_rng(0)
    for _ in range(100):
        one, other = rng.normal(size=(2, 50)) * 3
        assert np.linalg.norm(np.clip(one, -2, 2) - np.clip(other, -2, 2)) <= np.linalg.norm(one - other)


def test_rows_that_do_not_match_are_refused():
    x, y, patients = rows(5)
    with pytest.raises(TrainingRefused, match="number of rows"):
        train_round(linear(4), None, x, y[:4], patients, plan(), sgd(), divisor=1.0)
