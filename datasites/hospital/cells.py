"""Reads a hospital's table as text, cell by cell, and says what the text of one cell means.

Nothing is guessed from a column: what one row holds must not change how another is read (theorem in `harmonise`).

Delimited text is read by `delimited`, strictly. Parquet: the types of its columns are part of the file, and values are
written as text one by one. A whole number has one text in columns of whole numbers and of fractions, since writers take
the one or the other depending on whether a value is missing somewhere.

What equals what, everywhere: a *word* is a cell's text without white space around it, composed (Unicode's NFC), and
words are equal letter by letter. A *code* is the number that a cell says, exactly, or else its word: 1, 01, 1.0 and 1e0
are one code and four words. `harmonise` says which of the two is compared where. An empty cell is missing, and no word
is, unless the mapping says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import pandas as pd

from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.delimited import CONTROL, Doubt, Encoding, Separator, read_delimited
from datasites.study.errors import InputError

#: Words by which exports often say that there is no value. None is taken for that; messages may show them, since they
#: are no patient's.
USUAL_FOR_MISSING = frozenset(
    [
        "na",
        "n/a",
        "nan",
        "-nan",
        "null",
        "none",
        "<na>",
        "#n/a",
        "#n/a n/a",
        "#na",
        "nil",
        "nd",
        "?",
        "-",
        ".",
        "unknown",
    ]
    + ["1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)

#: Whole numbers up to this one are all exact in a column of fractions.
_EXACT = 2**53
#: Digits of ASCII alone: neither thousands' separators nor digits of other scripts, which readers take differently.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}
#: Names that pandas gives in Parquet to the row numbers of what it wrote; no content of a row.
_ROW_NUMBERS = re.compile(r"__index_level_[0-9]+__")


@dataclass(frozen=True)
class Table:
    """A hospital's table as it stands in its file, all text, "" where there is no value.

    places: of each row in the file, its line, or its number in Parquet. empty: how many lines or rows hold nothing and
    are left out. doubts: what people should look at (see `delimited.Doubt`).
    """

    path: Path
    cells: pd.DataFrame
    places: tuple[int, ...]
    empty: tuple[int, ...]
    doubts: tuple[Doubt, ...]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def place(self) -> str:
        """What `places` counts."""
        return "row" if self.path.suffix.lower() == ".parquet" else "line"


def table_of(home: Home, dataset: DatasetSettings) -> Table:
    """The table of a dataset as it is now; raises `InputError`."""
    return read_table(home.root / dataset.table, dataset.separator, dataset.encoding)


def read_table(path: Path, separator: Separator = ",", encoding: Encoding = "utf-8") -> Table:
    """Read delimited text or Parquet; raises `InputError` that names lines and never shows a patient's value."""
    with _reading(path, "table"):
        if path.suffix.lower() == ".parquet":
            return _parquet(path)
        read = read_delimited(path, separator, encoding)
        cells = pd.DataFrame(list(read.rows), columns=list(read.names), dtype=object)
        return Table(path, cells, read.lines, read.empty, read.doubts)


def read_mock(path: Path) -> pd.DataFrame:
    """Read a mock table, CSV or Parquet, as researchers do, with pandas' types; raises `InputError`.

    Its rows are invented and published, so that types may be guessed from all of them.
    """
    with _reading(path, "mock"):
        return pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)


@contextmanager
def _reading(path: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such table; mend `{setting}` in datasite.toml") from error
    except ImportError as error:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow; run `pip install 'datasites[parquet]'`, or save as CSV"
        ) from error
    except InputError:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        raise InputError(
            f"{path}: not a readable table ({type(error).__name__}); expected CSV in UTF-8, or Parquet"
        ) from None


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    # A file tells what was damaged only where its writer wrote checksums of its pages; see TABLES.md.
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    kept = [place for place, name in enumerate(table.column_names) if not _ROW_NUMBERS.fullmatch(name)]
    names = [table.column_names[place].strip() for place in kept]
    if twice := sorted({repr(name) for name in names if names.count(name) > 1}):
        raise InputError(
            f"{path}: {', '.join(twice)} is the name of more than one column (spaces around a name don't count); give "
            "each column a name of its own"
        )
    columns = [[cell_text(value) for value in table.columns[place].to_pylist()] for place in kept]
    for name, column in zip(names, columns, strict=True):
        if cut := sum(CONTROL.search(cell) is not None for cell in column):
            raise InputError(
                f"{path}: {cut} value(s) of column {name!r} hold control characters, at which readers cut values; mend "
                "the export"
            )
    rows = list(zip(*columns, strict=True))
    places = [number for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    frame = pd.DataFrame([rows[place - 1] for place in places], columns=names, dtype=object)
    empty = tuple(sorted(set(range(1, len(rows) + 1)) - set(places)))
    return Table(path, frame, tuple(places), empty, ())


def cell_text(value: object) -> str:
    """One cell as text; "" for no value (None, NaN and their like). Text is left as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return _bytes_text(value)
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


def _bytes_text(value: bytes) -> str:
    """The text that a writer left without its type, as several do to Parquet; of other bytes their digits."""
    with suppress(UnicodeDecodeError):
        text = value.decode("utf-8")
        if CONTROL.search(text) is None:
            return text
    return f"0x{value.hex()}"


def _fraction_text(value: float) -> str:
    if np.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) <= _EXACT else repr(value)


def number(text: str) -> Decimal | None:
    """The number that a cell says, exactly, or None for a word; `true` is 1 and `false` 0. White space is ignored."""
    word = text.strip()
    return _TRUTH.get(word.lower(), _decimal(word))


def word(text: str) -> str:
    """A cell's text without white space around it, composed: what people see as one word is one."""
    return unicodedata.normalize("NFC", text.strip())


def code(text: str) -> Decimal | str:
    """The number that a cell says, exactly, or its word: `1`, `01`, `1.0` and ` 1e0` are one code."""
    value = _decimal(text.strip())
    return word(text) if value is None else value


def _decimal(word: str) -> Decimal | None:
    if _NUMBER.fullmatch(word) is None:
        return None
    try:
        return Decimal(word)
    except InvalidOperation:  # an exponent of twenty digits
        return None


def pseudonym(value: object) -> str | None:
    """A patient's identifier as the text of its cell, without white space around it; None where the cell is empty.

    Identifiers are no numbers: 000002 is not 2, and a withdrawal must find the patient by the words that people use.
    Spellings that may be one patient are a finding (`plausible`).
    """
    return cell_text(value).strip() or None
