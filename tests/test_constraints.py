"""The exact versions that `scripts/setup.sh` installs, against what pyproject.toml asks for."""

import re
import tomllib
from importlib import metadata
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


def test_what_a_pinned_package_brings_along_is_pinned_too() -> None:
    """Or two machines get what is newest on the day. What torch brings for a GPU follows its own pins."""
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    brought = {
        canonicalize_name(asked.name)
        for name in pins
        for asked in map(Requirement, _requires(name))
        if asked.marker is None or asked.marker.evaluate({"extra": ""})
    }
    missing = {name for name in brought - set(pins) if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert missing == set(), "renew scripts/constraints.txt; its head says how"


def _requires(name: str) -> list[str]:
    """What an installed package asks for; one that this machine lacks asks for nothing here."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _is_met(asked: Requirement, pins: dict[str, str]) -> bool:
    version = pins.get(canonicalize_name(asked.name))
    return version is not None and asked.specifier.contains(version, prereleases=True)
