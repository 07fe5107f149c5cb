"""What the text of one cell of a hospital's table means; reads no file (`tables`).

What equals what, everywhere: a *word* is a cell's text without white space around it, composed (Unicode's NFC), and
words are equal letter by letter. A *code* is the number that a cell says, exactly, or else its word: 1, 01, 1.0 and 1e0
are one code and four words. `harmonise` says which of the two is compared where. An empty cell is missing, and no word
is, unless the mapping says so.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from numbers import Integral, Real
from pathlib import Path

from datasites.hospital.data.delimited import CONTROL
from datasites.study.errors import InputError
from datasites.study.visible import shows

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
_EXACTLY = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
#: Digits of ASCII alone: neither thousands' separators nor digits of other scripts, which readers take differently.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)
#: Types of what pandas has for no value; by name, as NumPy's own truth, so that nobody needs these libraries here.
_NO_VALUES = ("NAType", "NaTType")
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}


@contextmanager
def readable(path: Path, setting: str) -> Iterator[None]:
    """Turn what is raised where a file is no table into an `InputError` that shows none of its content."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such table; correct `{setting}` in datasite.toml") from error
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


def cell_text(value: object) -> str:
    """Return one cell as text; "" for no value (None, NaN and their like). Text is left as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return _bytes_text(value)
    if value is None or type(value).__name__ in _NO_VALUES:
        return ""
    if type(value).__name__ in ("bool", "bool_"):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return _fraction_text(float(value))
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return str(value)


def _bytes_text(value: bytes) -> str:
    """Return the text that a writer stored without its type, as several do in Parquet; of other bytes, their digits."""
    with suppress(UnicodeDecodeError):
        text = value.decode("utf-8")
        if CONTROL.search(text) is None:
            return text
    return f"0x{value.hex()}"


def _fraction_text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) <= _EXACT else repr(value)


def number(text: str) -> Decimal | None:
    """Return the exact number in a cell, None for a word; `true` is 1 and `false` 0. White space is ignored."""
    word = text.strip()
    return _TRUTH.get(word.lower(), _decimal(word))


def word(text: str) -> str:
    """Return a cell's text without white space around it, composed: what people see as one word is one."""
    return unicodedata.normalize("NFC", text.strip())


def code(text: str) -> Decimal | str:
    """Return the exact number in a cell, or its word: `1`, `01`, `1.0` and ` 1e0` are one code."""
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
    """Return a patient's identifier as its cell's text, without white space around it; None for an empty cell.

    Identifiers are no numbers: 000002 is not 2, and a withdrawal must find the patient by the words that people use.
    Spellings that may be one patient are a finding (`plausible`).
    """
    return cell_text(value).strip() or None


def spelling_key(identifier: str) -> str:
    """Return what spellings of one identifier have in common.

    Compatibility forms, capitals, spaces and what people don't see are taken away (Unicode NFKC, case folding,
    `visible.shows`), and what is then a number is read as one, exactly.
    """
    text = unicodedata.normalize("NFKC", identifier).casefold()
    text = unicodedata.normalize("NFKC", "".join(c for c in text if shows(c)))
    value = number(text)
    return text if value is None or not value.is_finite() else f"{_plain(value)}"


def _plain(value: Decimal) -> Decimal:
    # Python's usual context would round long identifiers to 28 digits, and raise for what looks like a large exponent.
    return _EXACTLY.normalize(value) if value else Decimal(0)
