"""The one root of errors that a person caused or can mend; each message names the thing, the rule and the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class DatasitesError(Exception):
    """Root of all errors that commands print as one line, without a traceback."""


class InputError(DatasitesError, ValueError):
    """A file that a person wrote is not what it must be."""


def parse_toml(text: str | bytes, model: type[Model], file: str | Path) -> Model:
    """Read TOML into `model`; raises `InputError` with file, key and rule in one line."""
    try:
        raw = tomllib.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not valid TOML: {error}; mend the line and try again") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise InputError(
            f"{file}: nested deeper, or with longer numbers, than a file that people write; write it shorter"
        ) from error
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{file}: {explain(error)}") from error


def read_toml(path: Path, model: type[Model]) -> Model:
    """`parse_toml` of a file; a missing or unreadable one is an `InputError` too."""
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; write it or name another folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_toml(text, model, path)


def explain(error: ValidationError, *, quote: bool = True) -> str:
    """The first fault of a validation in words: key, rule, and what stood there; then how many more there are.

    `quote=False` leaves out what stood there, which may be a secret.
    """
    faults = error.errors(include_url=False)
    first = faults[0]
    key = ".".join(str(part) for part in first["loc"]) or "the whole file"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        rule = "no such key here; take it out or correct its spelling"
    elif first["type"] == "missing":
        rule = "is missing; add it"
    elif quote and isinstance(first["input"], str | int | float | bool):
        rule = f"{rule}, found {first['input']!r}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{key}: {rule}{more}"
