"""A model that can't be trained privately is refused before it meets a patient, with the fix named."""

import pytest
import torch
from torch import nn

from datasites.privacy.layers import private_form
from datasites.privacy.model_checks import check_model, describe
from tests.privacy.models import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_good_models_have_no_findings(kind):
    assert check_model(KINDS[kind][0]()) == []
    assert check_model(private_form(KINDS[kind][0]())) == []


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(1))


class OwnWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def tied():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def hooked():
    layer = nn.Linear(3, 1)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "use GroupNorm or LayerNorm"),
        (nn.BatchNorm2d(3, affine=False), "use GroupNorm or LayerNorm"),
        (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), "track_running_stats=False"),
        (Counter(), "registers a buffer"),
        (OwnWeight(), "owns parameters"),
        (tied(), "shares a parameter"),
        (nn.Embedding(5, 3, max_norm=1.0), "max_norm"),
        (nn.Embedding(5, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Embedding(5, 3, sparse=True), "sparse"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "padding_mode"),
        (nn.LayerNorm(3, bias=False), "bias=True"),
        (nn.GRU(3, 4), "batch_first=True"),
        (nn.Bilinear(2, 2, 1), "owns parameters"),
        (nn.ReLU(), "no trainable parameter"),
        (hooked(), "has a hook"),
    ],
)
def test_bad_models_are_refused_with_the_fix(module, words):
    findings = [finding for finding in check_model(module) if finding.blocking]
    assert any(words in str(finding) for finding in findings)


def test_dropout_is_worth_knowing_and_does_not_block():
    (finding,) = check_model(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    assert not finding.blocking
    assert "inactive" in finding.rule


def test_size_is_told_and_limited():
    module = nn.Linear(3, 1)
    module.bias.requires_grad_(False)
    assert describe(module) == type(describe(module))(parameters=4, trainable=3, bytes=16)
    assert any("above" in finding.rule for finding in check_model(module, most_parameters=3))
