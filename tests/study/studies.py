"""Studies for tests: the shipped one, changed in some lines, or with noise shared among n hospitals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from datasites.study.manifest import StudyTerms
from datasites.study.package import StudyPackage

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"


def distributed(hospitals: int = 0, **changes: dict[str, Any]) -> StudyTerms:
    """The heart study in distributed mode, with `changes` by section; its own four hospitals unless n is given."""
    terms = StudyPackage.read(HEART).study.model_dump(mode="json")
    terms["privacy"] |= {"mode": "distributed", "noise_multiplier": 2.0}
    terms["training"] = {"steps": 1, "learning_rate": 5.0}
    terms["evaluation"] |= {"noise_multiplier": 1.4}
    terms["cohort"] |= {"patients": 920, "threshold": None}
    if hospitals:
        terms["cohort"]["hospitals"] = [f"site@h{number}.example.org" for number in range(hospitals)]
    for section, values in changes.items():
        terms[section] = terms[section] | values if isinstance(values, dict) else values
    return StudyTerms.model_validate(terms)


def heart_package(**lines: str | None) -> StudyPackage:
    """The heart study with other values, in TOML, of these keys of study.toml, or without one.

    A value may bring lines of its own.
    """
    files = StudyPackage.read(HEART).files
    text = files["study.toml"].decode()
    for key, value in lines.items():
        before, after = re.split(rf"(?m)^{key} = (?:\[[^]]*\]|.*)\n", text, maxsplit=1)
        text = before + ("" if value is None else f"{key} = {value}\n") + after
    return StudyPackage({**files, "study.toml": text.encode()})


def distributed_package(**lines: str) -> StudyPackage:
    """The same with three rounds in distributed mode."""
    distributed = {
        "rounds": "3",
        "mode": '"distributed"\nnoise_multiplier = 2.0',
        "steps": "1",
        "learning_rate": "3.0",
        "bins": "6\nnoise_multiplier = 1.4",
        "colluders": "1\npatients = 920",
    }
    return heart_package(**{**distributed, **lines})


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in HEART.iterdir() if path.is_file()}


def edit(name: str, old: str, new: str) -> dict[str, bytes]:
    changed = files()
    assert old.encode() in changed[name]
    changed[name] = changed[name].replace(old.encode(), new.encode(), 1)
    return changed
