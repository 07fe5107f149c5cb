"""Hostile models: verifier or probe refuse each, and without the verifier the sandbox holds."""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from datasites.enclave import escape, loader
from datasites.enclave.confine import Limits
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.shapes import check_shapes
from datasites.enclave.verifier import verify
from datasites.privacy.clipping import UnsupportedModel
from datasites.privacy.layers import private_form
from datasites.privacy.probe import DependentRows, check_independence

FOLDER = Path(__file__).parent / "hostile_models"
HEADER = re.compile(r"^# tries: (?P<tries>.+?) \| rule: (?P<rule>[a-z-]+)(?: \| touches: (?P<flags>[a-z ]+))?$")
LIMITS = Limits(memory=1 << 30)


@dataclass(frozen=True)
class Hostile:
    name: str
    source: str
    rule: str
    flags: tuple[str, ...]


def _read(path):
    source = path.read_text(encoding="utf-8")
    header = HEADER.match(source.split("\n", 1)[0])
    assert header, f"{path.name}: the first line must say what it tries and which rule stops it"
    return Hostile(path.name, source, header["rule"], tuple((header["flags"] or "").split()))


HOSTILE = [_read(path) for path in sorted(FOLDER.glob("*.py"))]
SYSTEM = [model for model in HOSTILE if "system" in model.flags]
LIVE = [model for model in HOSTILE if "live" in model.flags]
UNSEEN = [model for model in HOSTILE if model.rule == "probe"]


def test_the_suite_is_large():
    assert len(HOSTILE) >= 60
    assert len(SYSTEM) >= 30
    assert len(LIVE) >= 15
    assert len(UNSEEN) >= 8


@pytest.mark.parametrize("model", [m for m in HOSTILE if m.rule != "probe"], ids=lambda m: m.name)
def test_the_verifier_refuses(model):
    found = {finding.rule for finding in verify(model.source)}
    assert model.rule in found, f"expected {model.rule}, found {sorted(found)}"


@pytest.mark.parametrize("model", UNSEEN, ids=lambda m: m.name)
def test_the_probe_refuses_what_the_text_does_not_show(model):
    assert verify(model.source) == ()
    namespace = loader.execute(model.source)
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(12, 4)).astype(np.float32), (rng.random(12) < 0.5).astype(np.float32)

    def probe():
        module, loss = private_form(namespace["build_model"](4)), namespace.get("loss")
        check_shapes(module, loss, x, y)
        check_independence(module, loss, x, y)

    with pytest.raises((DependentRows, UnsupportedModel)):
        probe()


def _run(sandbox, tmp_path, models, limits, port, name):
    """Run models with the verifier off; returns name -> (loot, error), after checking the host."""
    bait_folder = tmp_path / "bait"
    bait_folder.mkdir()
    token = secrets.token_hex(16)
    (bait_folder / "bait.txt").write_text(token)
    study = tmp_path / "study"
    study.mkdir()
    for model in models:
        (study / model.name).write_text(model.source, encoding="utf-8")
    shutil.copy(Path(__file__).with_name("hostile_run.py"), study)
    before = {path.name: path.read_bytes() for path in study.iterdir()}
    bait = {
        "file": str(bait_folder / "bait.txt"), "folder": str(bait_folder), "port": port, "socket": name,
        "pid": os.getpid(), "token_name": "DATASITES_TOKEN",
    }  # fmt: skip
    inside = sandbox.inside(study)
    arguments = [str(inside / "hostile_run.py"), str(inside), json.dumps(bait), limits, *(m.name for m in models)]
    command = sandbox.command(arguments, study)
    if sandbox.config.mode == "off":
        command.insert(2, f"DATASITES_TOKEN={token}")  # the variables that a datasite without a sandbox would have
    done = subprocess.run(command, env={"DATASITES_TOKEN": token}, capture_output=True, timeout=300, check=False)
    results = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            result = json.loads(line)
            results[result["name"]] = (result["loot"], result["error"])
    assert set(results) == {model.name for model in models}, done.stderr.decode()[-2000:]
    unchanged = {path.name: path.read_bytes() for path in study.iterdir()} == before
    return results, unchanged and [path.name for path in bait_folder.iterdir()] == ["bait.txt"]


def test_the_sandbox_holds_with_the_verifier_off(tmp_path):
    package = Path(loader.__file__).parent.parent
    sources = {path: path.read_bytes() for path in package.glob("privacy/*.py")}
    with escape._ports() as (port, name, reached):
        results, untouched = _run(Sandbox(SandboxConfig(limits=LIMITS)), tmp_path, SYSTEM, LIMITS.model_dump_json(),
                                  port, name)  # fmt: skip
        assert {name: loot for name, (loot, _) in results.items() if loot} == {}
        assert untouched
        assert not reached()
    assert {path: path.read_bytes() for path in package.glob("privacy/*.py")} == sources


def test_the_attacks_are_real_ones(tmp_path):
    """Without a sandbox they work: a suite of attacks that fail anyway would show nothing."""
    with escape._ports() as (port, name, _):
        results, _ = _run(Sandbox(SandboxConfig(mode="off")), tmp_path, LIVE, "none", port, name)
    failed = {name: error for name, (loot, error) in results.items() if not loot}
    assert failed == {}
