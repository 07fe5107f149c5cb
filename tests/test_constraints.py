"""The exact versions that `scripts/setup.sh` installs, against what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = dict(line.split("==") for line in LINES)


def test_each_line_is_a_name_and_a_version_of_any_build() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line)] == []
    assert len({canonicalize_name(name) for name in PINS}) == len(LINES)


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_what_is_asked_for_is_pinned_within_its_range(extra: str) -> None:
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    asked = map(Requirement, PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"])
    missed = [one for one in asked if one.name != PROJECT["name"] and not _is_met(one, pins)]
    assert missed == [], "renew scripts/constraints.txt; its head says how"


def _is_met(asked: Requirement, pins: dict[str, str]) -> bool:
    version = pins.get(canonicalize_name(asked.name))
    return version is not None and asked.specifier.contains(version, prereleases=True)
