"""What the README and the templates say is about things that exist, and a study's words stay words."""

import datetime
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from datasites.study.manifest import REQUIRED_SERVICES, StudyTerms
from policies.controls import CONTROLS
from policies.engine import Engine
from policies.ruleset import SHIPPED
from policies.templates import FOLDER, NAMES, TemplateError, plain, render
from tests.policies.facts_of import HOSPITAL, HOSPITALS, TODAY, baa, registry

POLICIES = SHIPPED.parent
README = (POLICIES / "README.md").read_text()
TABLE = README.split("## Controls")[1].split("A hospital's own rules are")[0]


def study(**changes: Any) -> StudyTerms:
    return StudyTerms.model_validate(
        {
            "name": "heart",
            "title": "Heart disease risk",
            "purpose": "heart-risk",
            "description": "Predicts heart disease from routine measurements.",
            "irb": "IRB-17",
            "researcher": "researcher@university.example",
            "organisation": "University",
            "ends": "2026-12-24",
            "services": [{"kind": kind, "organisation": "Centre"} for kind in REQUIRED_SERVICES],
            "cohort": {"dataset": "heart", "hospitals": HOSPITALS, "min_patients": 100},
            "label": "heart_disease",
            "privacy": {"epsilon": 3, "delta": 1e-3, "clip": 1.0, "sampling_rate": 0.1},
            "training": {"steps": 20, "learning_rate": 0.1},
            "rounds": 15,
        }
        | changes
    )


def rendered(name: str, **changes: Any) -> str:
    return render(name, study(**changes), "ab" * 32, ("age", "sex", "heart_disease"), registry(baa()), TODAY)


# -- README


@pytest.mark.parametrize("rule", sorted(CONTROLS))
def test_every_rule_has_a_row_that_is_marked_enforced_and_names_its_law(rule: str) -> None:
    law = next(r.law for r in Engine().rules if r.id == rule)
    rows = [row for row in TABLE.splitlines() if re.search(rf"[`:,] ?{rule}(?![\w-])", row)]
    assert rows
    assert all(row.rstrip().endswith("| enforced |") for row in rows)
    cited = " ".join(rows)
    for section in law.removeprefix("45 CFR ").split(", "):
        assert section in cited


def test_every_row_is_marked_and_rows_outside_name_no_code() -> None:
    rows = [row for row in TABLE.splitlines() if row.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5
        assert cells[4] in ("enforced", "supported", "outside")
        assert (cells[2] == "none") == (cells[4] == "outside")
        assert re.search(r"164\.\d{3}", cells[1])


def test_every_file_that_the_readme_names_exists() -> None:
    root = POLICIES.parent
    for path in set(re.findall(r"`([\w/]+\.(?:py|cedar|md|toml))`", README)):
        places = [root / path, POLICIES / path, SHIPPED / path, root / "datasites" / "hospital" / "evidence" / path]
        assert any(place.is_file() for place in places), path


def test_the_readme_says_what_it_is_not() -> None:
    assert "not legal advice" in README
    for open_question in ("Whether an update is protected health information", "Whether differential privacy"):
        assert open_question in README


# -- templates


@pytest.mark.parametrize("name", NAMES)
def test_a_template_fills_itself_in_from_the_study(name: str) -> None:
    text = rendered(name)
    assert "$" not in text
    assert "Heart disease risk" in text
    assert "2026-12-24" in text
    if name != "irb_section":
        assert text.count("| Centre | baa-centre version 1, until 2026-12-31 |") == 3
    if name != "baa_schedule":
        assert "age, sex, heart\\_disease" in text or "age, sex, heart_disease" in text
        assert "at least 3 hospitals" in text


def test_distributed_noise_is_not_presented_as_protecting_one_hospitals_update() -> None:
    distributed = {
        "privacy": {"epsilon": 3, "delta": 1e-3, "clip": 1.0, "sampling_rate": 0.1, "mode": "distributed"},
        "training": {"steps": 1, "learning_rate": 0.1},
        "cohort": {"dataset": "heart", "hospitals": HOSPITALS, "min_patients": 100, "patients": 800},
    }
    for name in ("irb_section", "data_protection_summary"):
        assert "only for the sum, as long as masking holds" in rendered(name, **distributed)
        assert "even if masking fails" in rendered(name)


def test_a_service_without_an_agreement_stands_out_and_the_hospitals_own_needs_none() -> None:
    services = [
        {"kind": "aggregation", "organisation": "Stranger"},
        {"kind": "model_distribution", "organisation": HOSPITAL},
        {"kind": "transport", "organisation": "Centre"},
    ]
    text = rendered("baa_schedule", services=services)
    assert "| aggregation | Stranger | **none in force** |" in text
    assert "| none needed: run by this hospital |" in text
    late = render("baa_schedule", study(), "ab" * 32, (), registry(baa()), datetime.date(2027, 1, 1))
    assert late.count("**none in force**") == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_studys_words_stay_words(name: str) -> None:
    hostile = "x |\n| transport | Centre | fine |\n# Approved\n<img src=a onerror=b> [a](b) $irb `c`"
    text = rendered(name, title=hostile[:200], description=hostile)
    assert "<img" not in text
    assert not re.search(r"^# Approved", text, re.M)
    assert "| transport | Centre | fine |" not in text
    assert "[a](b)" not in text
    assert "$irb" in text


def test_plain_keeps_ordinary_text() -> None:
    assert plain("St. Mary's (North), 2026-11-24: risk < 5 %") == "St. Mary's (North), 2026-11-24: risk &lt; 5 %"


def test_an_unknown_document_is_refused_by_name() -> None:
    with pytest.raises(TemplateError, match="there are baa_schedule, irb_section"):
        rendered("../README")


def test_all_templates_are_listed_and_packaged() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == set(NAMES)
    assert tomllib.loads((POLICIES / "examples" / "agreements.toml").read_text())["agreement"]
    assert (Path(FOLDER).parent / "schema.cedarschema").is_file()
