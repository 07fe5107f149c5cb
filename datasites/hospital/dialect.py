"""How a delimited table is written: what `datasite.toml` may state of it; nothing is guessed."""

from __future__ import annotations

from typing import Literal, get_args

Encoding = Literal["utf-8", "windows-1252", "iso-8859-1", "iso-8859-15", "utf-16"]


ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


Separator = Literal[",", ";", "\t", "|"]


SEPARATORS: tuple[Separator, ...] = get_args(Separator)
