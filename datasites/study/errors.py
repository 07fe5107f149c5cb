"""The one root of errors that a person caused or can mend; each message names the thing, the rule and the remedy."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from datasites.study.addresses import is_address

Model = TypeVar("Model", bound=BaseModel)
#: Characters of what stood in a file that a message repeats.
_QUOTED = 200
#: Parts of a key (a.b.c) at most. Python's reader takes time and memory with their square: minutes for a small file.
_KEY_PARTS = 16
#: Comments and strings of several lines hold no key; what follows a string that does not end is nobody's TOML.
_TOKENS = re.compile(
    r"""(?P<none>\#[^\n]*|"{3}(?:\\[\s\S]|(?!"{3})[^\\])*"{3,5}|'{3}(?:(?!'{3})[\s\S])*'{3,5})|(?P<open>"{3}|'{3})
    |(?P<part>[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')|(?P<dot>\.)|(?P<blank>[ \t]+)
    |(?P<unended>["'])|.|\n""",
    re.VERBOSE,
)


class DatasitesError(Exception):
    """Root of all errors of ours: commands print them as one line, without a traceback.

    rule: what was broken, in words that stay the same whatever the message says; the class's name unless it gives one.
    """

    rule: str = "datasites-error"

    def __init_subclass__(cls, **options: object) -> None:
        """Name the rule by the class."""
        super().__init_subclass__(**options)
        if "rule" not in vars(cls):
            cls.rule = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


class InputError(DatasitesError, ValueError):
    """A file that a person wrote is not what it must be."""


def parse_toml(text: str | bytes, model: type[Model], file: str | Path) -> Model:
    """Read TOML into `model`; raises `InputError` with file, key and rule in one line.

    Types are exact: text is no number, true is no 1, and 15.0 is no count; a whole number may stand for a fraction, and
    a date for the text that it is written as. A byte order mark before it is left out.
    """
    try:
        text = (text.decode("utf-8") if isinstance(text, bytes) else text).removeprefix("\ufeff")
        if line := _line_of_long_key(text):
            raise InputError(f"{file}: line {line}: a key of more than {_KEY_PARTS} parts; no table is that deep")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not valid TOML: {error}; mend the line and try again") from error
    except InputError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise InputError(
            f"{file}: nested deeper, or with longer numbers, than a file that people write; write it shorter"
        ) from error
    try:
        # As JSON: strict rules for Python's own values know no list that stands for a tuple.
        plain = json.dumps(raw, default=str, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{file}: holds nan or inf; write a finite number") from error
    except RecursionError as error:
        raise InputError(f"{file}: nested deeper than a file that people write; write it flatter") from error
    try:
        return model.model_validate_json(plain, strict=True)
    except ValidationError as error:
        raise InputError(f"{file}: {explain(error, model)}") from error


def _line_of_long_key(text: str) -> int:
    """The first line with a key of too many parts, 0 where there is none."""
    parts, joined = 0, False
    for found in _TOKENS.finditer(text):
        if found.lastgroup == "part":
            parts, joined = parts + 1 if joined else 1, False
            if parts > _KEY_PARTS:
                return text.count("\n", 0, found.start()) + 1
        elif found.lastgroup == "dot":
            joined = parts > 0
        elif found.lastgroup in ("open", "unended"):
            return 0
        elif found.lastgroup != "blank":
            parts, joined = 0, False
    return 0


def read_toml(path: Path, model: type[Model]) -> Model:
    """`parse_toml` of a file; a missing or unreadable one is an `InputError` too."""
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; write it or name another folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_toml(text, model, path)


def explain(error: ValidationError, model: type[BaseModel] | None = None, *, quote: bool = True) -> str:
    """The first fault of a validation in words: key, rule, and what stood there; then how many more there are.

    model: what was validated against, so that an unknown key can be told with the known ones. `quote=False` leaves out
    what stood there, which may be a secret.
    """
    faults = error.errors(include_url=False)
    # A key that nobody knows is often why another one is missing.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    key = ".".join(str(part) for part in first["loc"]) or "the whole file"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"]) if model else ()
        meant = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        rule = "no such key here; " + (f"did you mean {meant[0]}? " if meant else "take it out or correct its spelling")
        rule = f"{rule.strip()} (known: {', '.join(known)})" if known else rule
    elif first["type"] == "missing":
        rule = "is missing; add it"
    elif quote and isinstance(first["input"], str | int | float | bool) and not is_address(str(first["input"])):
        # An address may hold a secret: whoever refuses one says what of it may be shown.
        found = repr(first["input"])
        rule = f"{rule}, found {found if len(found) <= _QUOTED else found[:_QUOTED] + '...'}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{key}: {rule}{more}"


def _known_keys(model: type[BaseModel], place: Iterable[int | str]) -> tuple[str, ...]:
    """The keys that are known where an unknown one stood, sorted; none where several kinds of table may stand there."""
    *path, _ = place
    for part in path:
        if isinstance(part, int):
            continue  # an element of a list: the list's annotation names what it holds
        field = model.model_fields.get(part)
        inner = [] if field is None else list(_models_in(field.annotation))
        if len(inner) != 1:
            return ()
        model = inner[0]
    return tuple(sorted(field.alias or name for name, field in model.model_fields.items()))


def _models_in(annotation: object) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
