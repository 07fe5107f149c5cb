"""The lines behind the verifier: few builtins, guarded imports, plain values, a look for replaced functions."""

import numpy as np
import pytest
import torch
from torch import nn

from datasites.enclave import loader
from datasites.enclave.shapes import check_shapes
from datasites.privacy import noise, trainer
from datasites.privacy.probe import DependentRows


@pytest.fixture(scope="module")
def genuine():
    return loader.Genuine()


def load(source, genuine):
    return loader.load(source, 3, {}, genuine)


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "import torch.utils.cpp_extension_of_mine",
        "from subprocess import run",
        "open('x')",
        "eval('1')",
        "getattr(1, 'real')",
        "__import__('os')",
        "print(1)",
        "globals()",
    ],
)
def test_unverified_code_finds_few_builtins(code):
    with pytest.raises((ImportError, NameError)):
        loader.execute(code)


def test_verified_imports_work():
    names = loader.execute("import math\nimport torch.nn.functional as F\nfrom torch import nn\nx = nn.Linear(1, 1)\n")
    assert isinstance(names["x"], nn.Linear)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (noise, "gaussian"),
        (trainer, "train_round"),
        (trainer.Mechanism, "release"),
        (torch.nn.functional, "binary_cross_entropy_with_logits"),
        (torch.Tensor, "sum"),
        (nn.Module, "register_forward_hook"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_replaced_function_is_noticed(genuine, monkeypatch, owner, name):
    genuine.check()
    monkeypatch.setattr(owner, name, lambda *given, **named: None)
    with pytest.raises(loader.CodeRefused, match=name) as caught:
        genuine.check()
    assert caught.value.rule == "monkey-patch"


def test_replaced_code_or_defaults_are_noticed(genuine, monkeypatch):
    monkeypatch.setattr(noise.gaussian, "__defaults__", (0.0,))
    with pytest.raises(loader.CodeRefused, match="gaussian"):
        genuine.check()


KEEPING = """
from torch import nn


def helper(x):
    return x


class Other(nn.Module):
    pass


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, 1)
        self.kept = KEPT

    def forward(self, x):
        return self.fc(x)


def build_model(n_features, **config):
    return Net(n_features)
"""


@pytest.mark.parametrize("kept", ["helper", "Other", "nn.ReLU", "[nn.ReLU]", "{'a': helper}"])
def test_what_can_be_called_is_not_kept(genuine, kept):
    with pytest.raises(loader.CodeRefused, match="kept keeps a") as caught:
        load(KEEPING.replace("KEPT", kept), genuine)
    assert caught.value.rule == "kept-value"


@pytest.mark.parametrize("kept", ["3", "(1, 'a', None)", "[0.5]", "{'a': 1}", "nn.ReLU()"])
def test_plain_values_and_layers_are_kept(genuine, kept):
    assert load(KEEPING.replace("KEPT", kept), genuine).findings == ()


def test_batch_norm_is_a_blocking_finding_even_if_the_verifier_missed_it(monkeypatch):
    monkeypatch.setattr(loader.verifier, "check_source", lambda source, name: ())
    source = KEEPING.replace("self.kept = KEPT", "self.norm = nn.BatchNorm1d(3)")
    found = load(source, loader.Genuine()).findings
    assert [finding.where for finding in found if finding.blocking]


class Broadcasting(nn.Module):
    def forward(self, x):
        h = x.sum(dim=1, keepdim=True)
        return (h - h.squeeze(1)).amax(dim=1)


class Counting(nn.Module):
    def forward(self, x):
        return x.sum(dim=1) if len(x) < 8 else x.sum(dim=1) * 2


@pytest.mark.parametrize("module", [Broadcasting(), Counting()], ids=["broadcast", "branch"])
def test_the_batch_size_in_another_axis_is_noticed(module):
    x, y = np.ones((4, 3), dtype=np.float32), np.zeros(4, dtype=np.float32)
    with pytest.raises(DependentRows):
        check_shapes(module, None, x, y)


def test_layers_of_libraries_may_turn_their_axes():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.unsqueeze(1)).flatten(1).sum(dim=1)

    check_shapes(Net(), None, np.ones((4, 4), dtype=np.float32), np.zeros(4, dtype=np.float32))
