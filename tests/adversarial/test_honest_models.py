"""Honest models, from logistic regression to ResNet-18, pass every check without a change and train privately."""

from pathlib import Path

import numpy as np
import pytest

from datasites.enclave import loader
from datasites.enclave.shapes import check_shapes
from datasites.enclave.verifier import check_source
from datasites.privacy import parameters
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.probe import check_independence
from datasites.privacy.trainer import train_round
from datasites.study.manifest import LocalTraining

FOLDER = Path(__file__).parent / "honest_models"
HONEST = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
#: Features and configuration where the default does not fit.
SETTINGS = {"resnet18_groupnorm": (256, {"width": 8})}
PLAN = PrivacyPlan(clip=1.0, noise_multiplier=1.0, sampling_rate=0.5, rounds=1, steps_per_round=1)
TRAINING = LocalTraining(steps=1, learning_rate=0.1)


def _load(path, genuine):
    n_features, config = SETTINGS.get(path.stem, (16, {}))
    model = loader.load(path.read_text(encoding="utf-8"), n_features, config, genuine)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, n_features)).astype(np.float32)
    return model, x, (rng.random(8) < 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def genuine():
    return loader.Genuine()


def test_there_are_enough():
    assert len(HONEST) >= 25


@pytest.mark.parametrize("path", HONEST, ids=lambda path: path.stem)
def test_passes_every_check_and_trains(path, genuine):
    assert [str(finding) for finding in check_source(path.read_text())] == []
    model, x, y = _load(path, genuine)
    assert [finding for finding in model.findings if finding.blocking] == []
    check_shapes(model.module, model.loss, x, y)
    check_independence(model.module, model.loss, x, y)
    before = parameters.flatten(model.module)
    result = train_round(model.module, model.loss, x, y, np.arange(8), PLAN, TRAINING, divisor=4.0)
    assert result.steps == 1
    assert result.update.shape == before.shape
    assert np.isfinite(result.update).all()
    assert (result.update != 0).any()
    genuine.check()
