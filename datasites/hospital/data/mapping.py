"""`mapping.toml`: how a hospital's own columns become a study's features, and what it states of each of them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from pydantic import Field, model_validator

from datasites.hospital.data.cells import cell_text, word
from datasites.study.canonical import Agreed
from datasites.study.errors import read_toml
from datasites.study.manifest import Name

_Key = TypeVar("_Key", bound=Decimal | str)
_Meaning = TypeVar("_Meaning")


class Column(Agreed):
    """How one feature is made from one local column.

    `missing` lists local codes for "not measured"; `values` maps local words or codes to the study's; `above` makes a
    yes/no of a number (value > above); `factor` and `offset` convert units (study = local * factor + offset).

    What equals what (`cells`): entries of `missing` are codes, and so are keys of `values` of a number or a yes/no: 1,
    01 and 1.0 are one. Keys of a category are words: 250.0 and 250.00 are two diagnoses. A level of the study is met by
    its own word in small or capital letters. Only an empty cell and what `missing` names is missing. Where `values`
    names codes of a yes/no or a category, or a number among those of a number, every other value is a finding; where
    it names words alone for a number ("> 89"), other values are read as the numbers that they are.
    """

    source: str = Field(alias="from", min_length=1)
    unit: str = ""
    factor: float = 1.0
    offset: float = 0.0
    missing: tuple[str | int | float, ...] = ()
    values: dict[str, str | int | float] = {}
    above: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Column:
        if self.values and self.above is not None:
            raise ValueError("set either values or above, not both")
        one_meaning(((word(key), cell_text(meaning)) for key, meaning in self.values.items()), "values")
        return self


class Mapping(Agreed):
    """The whole of `mapping.toml`: patient column (optional: without it each row is one patient) and features."""

    patient: str | None = None
    columns: dict[Name, Column]


class FeatureReadiness(Agreed):
    """What the hospital sees of one feature; `ready` and `name` alone are what a researcher may see."""

    name: str
    ready: bool
    reason: str = ""
    unit: str = ""
    rows: int = 0
    missing: int = 0
    out_of_range: int = 0
    unmapped: int = 0


def read_mapping(path: Path) -> Mapping:
    """Read `mapping.toml`; raises `InputError`."""
    return read_toml(path, Mapping)


def one_meaning(pairs: Iterable[tuple[_Key, _Meaning]], where: str) -> dict[_Key, _Meaning]:
    """Return the pairs as a dictionary; raises `ValueError` where one key has two meanings."""
    known: dict[_Key, _Meaning] = {}
    for key, meaning in pairs:
        if known.setdefault(key, meaning) != meaning:
            raise ValueError(f"{where}: {str(key)!r} and another entry are one code with two meanings; keep one")
    return known
