"""Terms of studies and rounds have bounds: what a researcher writes can't overflow what is worked out from it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from datasites.study.canonical import Agreed
from datasites.study.errors import InputError, parse_toml
from datasites.study.letters import EpochOffer
from datasites.study.manifest import Cohort, Name, RoundManifest, StudyTerms, VectorTerm


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 1e308},
        {"scale": 1e307},
        {"scale": float("inf")},
        {"scale": float("nan")},
        {"scale": 5e-324},
        {"bound": 1e308},
        {"bound": 5e-324},
        {"bound": 2.0**16, "scale": 2.0**15},
    ],
)
def test_a_vector_that_no_ring_can_hold_is_no_term(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VectorTerm.model_validate({"name": "update", "length": 1, "bound": 16.0, "scale": 2.0**20} | changes)


@pytest.mark.parametrize("field", ["min_patients", "max_patients", "patients", "colluders", "threshold"])
def test_numbers_of_a_cohort_have_an_upper_bound(field: str) -> None:
    emails = tuple(f"site@h{n}.example.org" for n in range(4))
    terms = {"dataset": "heart", "hospitals": emails, "min_patients": 100}
    assert Cohort.model_validate(terms | {field: 3})
    with pytest.raises(ValidationError, match=field):
        Cohort.model_validate(terms | {field: 10**13})


def test_one_mailbox_in_three_spellings_is_no_cohort() -> None:
    emails = ("datasite@a.example.org", "Datasite@a.example.org", "DATASITE@A.EXAMPLE.ORG")
    with pytest.raises(ValidationError, match="are one mailbox"):
        Cohort.model_validate({"dataset": "heart", "hospitals": emails, "min_patients": 1})
    apart = tuple(f"Datasite@{name}.example.org" for name in "abc")
    assert Cohort.model_validate({"dataset": "heart", "hospitals": apart, "min_patients": 1}).hospitals == apart


def test_a_cohort_has_no_more_hospitals_than_shares_have_places() -> None:
    emails = tuple(f"site@h{n}.example.org" for n in range(256))
    with pytest.raises(ValidationError, match="hospitals"):
        Cohort.model_validate({"dataset": "heart", "hospitals": emails, "min_patients": 100})


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "9" * 5000,
        "a = " + "{a=" * 5000,
        "[" + "a." * 20000 + "a]\nx=1",
        'a = "' + r"\"" * 100_000,
        "a = 1 " + "'" + 'a"' * 100_000,
    ],
)
def test_a_file_made_to_break_the_reader_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^study\.toml: [^\n]*$"):
        parse_toml(text, StudyTerms, "study.toml")


@pytest.mark.parametrize(("epoch", "number"), [(10**30, 1), (0, 10**30)])
def test_an_epoch_or_round_that_no_table_can_hold_is_refused(epoch: int, number: int) -> None:
    offer = {"left_out": ("a@b.org",), "first_round": 1, "expires": "2027-01-01"}
    with pytest.raises(ValidationError, match="less than or equal"):
        EpochOffer.model_validate(offer | {"epoch": epoch, "last_round": number})
    with pytest.raises(ValidationError, match="less than or equal"):
        RoundManifest.model_validate({"epoch": epoch, "round": number})


class _Named(Agreed):
    columns: dict[Name, int]


@pytest.mark.parametrize(
    ("name", "fitting"),
    [("Age", "age"), ("I20.9", "i20_9"), ("a b", "a_b"), ("-x-", "x"), ("ä", ""), ("x" * 65, "x" * 64)],
)
def test_a_name_that_is_none_is_answered_with_one_that_is(name: str, fitting: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_toml(f'[columns]\n"{name}" = 1', _Named, "mapping.toml")
    said = str(caught.value)
    assert said.startswith(f"mapping.toml: columns.{name}")
    assert "small letters, digits" in said
    assert f"write {fitting}" in said if fitting else "write" not in said
    assert "pattern" not in said
    if fitting:
        assert parse_toml(f'[columns]\n"{fitting}" = 1', _Named, "mapping.toml").columns == {fitting: 1}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_before_toml_is_left_out(mark: str) -> None:
    text = f"{mark}[columns]\nage = 1\n"
    assert parse_toml(text.encode(), _Named, "t").columns == parse_toml(text, _Named, "t").columns == {"age": 1}
