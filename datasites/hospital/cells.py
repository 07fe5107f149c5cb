"""Reads a hospital's table as text, cell by cell, and says what the text of one cell means.

Nothing is guessed from a column: what one row holds must not change how another is read (theorem in `harmonise`).

CSV: UTF-8, cells parted by commas, one record to a line. Each line is parsed by itself, so a quote that somebody's
export left open can't swallow the patients on the lines after it; a cell with a line break is refused for the same
reason. Parquet: the types of its columns are part of the file, and values are written as text one by one. A whole
number has one text in columns of whole numbers and of fractions, since writers take the one or the other depending
on whether a value is missing somewhere.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import pandas as pd

from datasites.study.errors import InputError

#: Words for "no value" where the mapping and the data model give them no other meaning; in any case of letters.
MISSING_WORDS = frozenset(
    ["", "na", "n/a", "nan", "-nan", "null", "none", "<na>", "#n/a", "#n/a n/a", "#na"]
    + ["1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)

#: Whole numbers up to this one are all exact in a column of fractions.
_EXACT = 2**53
#: Digits of ASCII alone: neither thousands' separators nor digits of other scripts, which readers take differently.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}
#: Names that pandas gives in Parquet to the row numbers of what it wrote; no content of a row.
_ROW_NUMBERS = re.compile(r"__index_level_[0-9]+__")


def read_table(path: Path) -> pd.DataFrame:
    """Read CSV or Parquet as text, "" where there is no value; raises `InputError` with lines, never with a value."""
    with _reading(path, "table"):
        return _parquet(path) if path.suffix == ".parquet" else _csv(path)


def read_mock(path: Path) -> pd.DataFrame:
    """Read a mock table, CSV or Parquet, as researchers do, with pandas' types; raises `InputError`.

    Its rows are invented and published, so that types may be guessed from all of them.
    """
    with _reading(path, "mock"):
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


@contextmanager
def _reading(path: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such table; mend `{setting}` in datasite.toml") from error
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs the package pyarrow; install it, or save as CSV") from error
    except InputError:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        raise InputError(
            f"{path}: not a readable table ({type(error).__name__}); expected CSV in UTF-8, or Parquet"
        ) from None


def _csv(path: Path) -> pd.DataFrame:
    text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("not text")
    # White space makes no record, and no cell either.
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError("empty")
    # Of the header alone: how pandas calls columns without a name, and two of one name.
    names = pd.read_csv(io.StringIO(lines[0][1]), dtype=str, nrows=0, index_col=False).columns
    rows, broken = [], []
    for number, line in lines[1:]:
        cells = _cells(line)
        if cells is None or len(cells) > len(names):
            broken.append(number)
        else:
            rows.append(cells + [""] * (len(names) - len(cells)))
    if broken:
        raise InputError(
            f"{path}: {len(broken)} line(s) are no records of {len(names)} cells by themselves (line "
            f"{', '.join(map(str, broken[:5]))}{', …' if len(broken) > 5 else ''}); look there for a quote that is "
            "left open, a comma outside quotes or a line break inside a cell, and mend the export"
        )
    return pd.DataFrame(rows, columns=names, dtype=object)


def _cells(line: str) -> list[str] | None:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return None


def _parquet(path: Path) -> pd.DataFrame:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        table = file.read()
    if len(set(table.column_names)) != len(table.column_names):
        raise InputError(f"{path}: two columns have one name; rename one of them")
    return pd.DataFrame(
        {
            name: [cell_text(value) for value in column.to_pylist()]
            for name, column in zip(table.column_names, table.columns, strict=True)
            if not _ROW_NUMBERS.fullmatch(name)
        },
        dtype=object,
    )


def cell_text(value: object) -> str:
    """One cell as text; "" for no value (None, NaN and their like). Text is left as it is."""
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _fraction_text(float(value))
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return str(value)


def _fraction_text(value: float) -> str:
    if np.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) <= _EXACT else repr(value)


def number(text: str) -> Decimal | None:
    """The number that a cell says, exactly, or None for a word; `true` is 1 and `false` 0. White space is ignored."""
    word = text.strip()
    return _TRUTH.get(word.lower(), _decimal(word))


def code(text: str) -> Decimal | str:
    """What codes are compared by, in mappings and tables alike: `1`, `01`, `1.0` and ` 1e0` are one number.

    Everything else is a word, without white space around it and in small letters.
    """
    word = text.strip()
    value = _decimal(word)
    return word.lower() if value is None else value


def _decimal(word: str) -> Decimal | None:
    if _NUMBER.fullmatch(word) is None:
        return None
    try:
        return Decimal(word)
    except InvalidOperation:  # an exponent of twenty digits
        return None


def is_missing_word(text: str) -> bool:
    """Whether a cell says that there is no value, by the fixed list."""
    return text.strip().lower() in MISSING_WORDS


def pseudonym(value: object) -> str | None:
    """A patient's identifier as the text of its cell, without white space around it; None where there is none.

    Identifiers are no numbers: 000002 is not 2, and a withdrawal must find the patient by the words that people use.
    """
    text = cell_text(value).strip()
    return None if is_missing_word(text) else text
