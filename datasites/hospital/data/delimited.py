"""Reads a delimited table (CSV and the like) strictly, or refuses it; knows nothing of studies or of meanings.

The grammar is RFC 4180 section 2 with a stated separator and encoding, and nothing else. A record is fields separated
by the separator and ended by a line feed, with or without a carriage return before it; a field is text without
separators, quotes and line ends, or it is quoted as a whole: `"`, any text in which each quote is doubled, `"`.
Every record has as many fields as the header, and no two columns have one name. Nothing is repaired: a lost or an
added separator shifts columns, and a stray quote swallows patients, so either is refused, with the lines where it is.

What the grammar allows and people should look at all the same is reported as a `Doubt` (see there).

Theorem (records by themselves). Let a file be read without a refusal. Taking away the text of some of its records,
with their line ends, gives a file that is read without a refusal (unless none is left, which is read as no row), and
its rows are the rows of the first file without those of these records, in the same order, cell for cell.
Proof. The reader is in one state, "at the start of a record", after the header and after each record, whose end it
finds from the record's own text: quotes are legal only in pairs (`_FIELD`), so a line feed ends a record exactly if an
even number of quotes stands between the record's start and it. What it takes from a record is a function of its text,
of the header and of the separator. QED. (The last record of a file that isn't ended is read as if it were, with a
doubt.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from datasites.hospital.dialect import ENCODINGS, SEPARATORS, Encoding, Separator
from datasites.study.errors import InputError

#: Control characters (Unicode category Cc) but tab, line feed and carriage return, which the grammar looks at.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: Lines that a refusal names.
_NAMED = 5


@dataclass(frozen=True)
class Doubt:
    """Something that the grammar allows and that a broken export makes as well; people say whether it is right.

    open_quote: a quoted field that holds as many separators as whole records would, on one of its lines or where its
    lines meet: an open quote and one that happens to close it look the same. not_ended: the last line has no line end,
    as in a file that was cut off.
    lines: where, counted from 1.
    """

    kind: Literal["open_quote", "not_ended"]
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Delimited:
    """A table as its file has it: the header's names (trimmed), rows of as many fields, all text.

    lines: the line of the file on which each row begins. empty: lines that hold no record, or one of empty fields.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    empty: tuple[int, ...]
    doubts: tuple[Doubt, ...]


def decoded(content: bytes, encoding: Encoding, name: str) -> str:
    """Return a file's text, without a byte order mark; raises `InputError` where it isn't text in this encoding."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}: byte {error.start + 1} (line {line}) is no text in {encoding}; set `encoding` of this dataset "
            f"in datasite.toml to what the export writes ({', '.join(ENCODINGS)}), or correct the export"
        ) from None
    return text.removeprefix("\ufeff")


def parse(text: str, separator: Separator, name: str) -> Delimited:
    """Parse the text of a whole file; `name` is what messages call it. Raises `InputError`."""
    _require_printable(text, name)
    records = _records(text, name)
    empty = []
    for line, record in records:
        fields = _fields(record, separator)
        if fields is None:
            raise InputError(
                f"{name}, line {line}: the header has a quote that isn't around a whole name, or a "
                "carriage return inside; correct the export"
            )
        if any(field.strip() for field in fields):
            names, begin = _header(fields, separator, name, line), line
            break
        empty.append(line)
    else:
        raise InputError(f"{name}: the file is empty; a table has a header, and a row for each record")
    rows, lines, quotes, doubtful = [], [], [], []
    wide: dict[int, list[int]] = {}
    ends_empty = True
    for line, record in records:
        fields = _fields(record, separator)
        if fields is None:
            quotes.append(line)
        elif not any(field.strip() for field in fields):
            empty.append(line)
        elif len(fields) != len(names):
            wide.setdefault(len(fields), []).append(line)
            ends_empty &= len(fields) == len(names) + 1 and not fields[-1].strip()
        else:
            rows.append(tuple(fields))
            lines.append(line)
            if "\n" in record and any(_holds_records(field, separator, len(names)) for field in fields):
                doubtful.append(line)
    if quotes:
        raise InputError(
            f"{name}: {_on(quotes, 'record')} with a quote that isn't around a whole field, or a carriage return "
            "outside quotes; a field is quoted from its first to its last character, and a quote inside it is written "
            "twice; correct the export"
        )
    if wide:
        _refuse_widths(wide, len(names), name, ends_empty, begin if not rows and len(wide) == 1 else 0)
    doubts = [Doubt("open_quote", tuple(doubtful))] if doubtful else []
    if not text.endswith("\n"):
        doubts.append(Doubt("not_ended", (text.count("\n") + 1,)))
    return Delimited(names, tuple(rows), tuple(lines), tuple(empty), tuple(doubts))


def _require_printable(text: str, name: str) -> None:
    if found := CONTROL.search(text):
        line, count = text.count("\n", 0, found.start()) + 1, len(CONTROL.findall(text))
        hint = (
            "; such characters come from a file in windows-1252 that is read as iso-8859-1: set `encoding`"
            if "\x80" <= found[0] <= "\x9f"
            else ""
        )
        raise InputError(
            f"{name}: {count} control character(s), the first (U+{ord(found[0]):04X}) on line {line}; a table holds "
            f"text alone, and readers cut fields there; correct the export{hint}"
        )


def _records(text: str, name: str) -> Iterator[tuple[int, str]]:
    """Yield each record: its first line and its text without its line end; raises `InputError` at an open quote."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    begin, is_open = 0, False
    held: list[str] = []
    for number, line in enumerate(lines, 1):
        if not is_open:
            begin, held = number, []
        held.append(line)
        is_open ^= line.count('"') % 2 == 1
        if not is_open:
            yield begin, "\n".join(held).removesuffix("\r")
    if is_open:
        raise InputError(
            f"{name}: a quote is opened in the record on line {begin} and never closed; correct the export there"
        )


def _fields(record: str, separator: Separator) -> list[str] | None:
    """Return the fields of one record, or None where quotes or carriage returns stand where none may."""
    if '"' not in record:
        return None if "\r" in record else record.split(separator)
    field = _FIELD[separator]
    fields, place = [], 0
    while True:
        found = field.match(record, place)
        assert found is not None  # an empty field matches anywhere
        quoted = found[1]
        fields.append(found[0] if quoted is None else quoted.replace('""', '"'))
        place = found.end()
        if place == len(record):
            return fields
        if record[place] != separator:
            return None
        place += 1


_FIELD = {separator: re.compile(f'"((?:[^"]|"")*)"|[^"\r\n{re.escape(separator)}]*') for separator in SEPARATORS}


def _holds_records(field: str, separator: Separator, columns: int) -> bool:
    """Say whether a field may be several records, of which an open quote made one.

    Such a field begins and ends in one column, so each line end in it but those of empty lines stands among as many
    separators as a record has; a line that holds as many is enough.
    """
    parts = [part.count(separator) for part in field.split("\n") if part.strip()]
    return "\n" in field and (
        max(parts, default=0) >= columns - 1 or sum(parts) >= (columns - 1) * (len(parts) - 1) > 0
    )


def _header(fields: list[str], separator: Separator, name: str, line: int) -> tuple[str, ...]:
    names = tuple(field.strip() for field in fields)
    if len(names) == 1:
        others = [other for other in SEPARATORS if other in names[0]]
        raise InputError(
            f"{name}, line {line}: the header has one column; fields are separated by {_word(separator)}"
            + (f", and it holds {_word(others[0])}: set `separator` of this dataset in datasite.toml" if others else "")
        )
    twice = [one for one, times in Counter(names).items() if times > 1]
    if twice:
        # Where a file has no header, names are a patient's values: places are shown.
        places = " and ".join(str(place) for place, one in enumerate(names, 1) if one == twice[0])
        raise InputError(
            f"{name}, line {line}: columns {places} of the header have one name (spaces around it don't count); give "
            "each column a name of its own, and add a header to a file without one"
        )
    return names


def _word(separator: Separator) -> str:
    return {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar (|)"}[separator]


def _refuse_widths(wide: dict[int, list[int]], columns: int, name: str, ends_empty: bool, begin: int) -> None:
    """Raise `InputError`. begin: the line of the header where no row is as wide, and all are of one width; else 0."""
    counts = "; ".join(f"{_on(lines, 'row')} with {width} field(s)" for width, lines in sorted(wide.items()))
    hint = (
        "; each of them ends with one separator more than the header"
        if ends_empty
        else "; look there for a separator outside quotes (a decimal comma?), a lost field or a line that was cut off"
        + (f", and whether line {begin} is the header" if begin else "")
    )
    raise InputError(f"{name}: the header has {columns} columns, and there are {counts}{hint}; correct the export")


def _on(lines: list[int], thing: str) -> str:
    shown = ", ".join(map(str, lines[:_NAMED])) + (", …" if len(lines) > _NAMED else "")
    return f"{len(lines)} {thing}(s) (line {shown})"
