"""Studies for tests: the shipped one's terms, with noise shared among n hospitals."""

from __future__ import annotations

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
