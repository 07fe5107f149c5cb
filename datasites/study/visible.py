"""What strangers wrote, as people see it: its characters are displayed and do nothing else.

A character that is invisible, turns text around (bidirectional marks), or tells a terminal what to do could make a
reviewer read something else than what was submitted. What is agreed holds none (`require_plain`); what is shown goes
through `visible`, wherever it is from.
"""

from __future__ import annotations

import unicodedata

from pydantic import BaseModel, JsonValue

from datasites.study.errors import InputError

#: Control, format, surrogate, private and unassigned characters, and separators of lines and paragraphs.
_NOT_SHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Letters, marks and a symbol that show nothing: fillers, joiners, selectors of a variant, the empty one of Braille.
BLANK = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


def visible(text: str) -> str:
    """Return the text with each such character, but for line ends and tabs, as its code point."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(f"\u27e6U+{ord(c):04X}\u27e7" if _acts_or_hides(c) else c for c in plain)


def one_line(text: str) -> str:
    """`visible`, with line ends and tabs spelt out as well: what stands here can't pass for the lines below it."""
    return visible(text).replace("\n", "\u27e6U+000A\u27e7").replace("\t", "\u27e6U+0009\u27e7")


def quoted(text: str) -> list[str]:
    """Return `visible` lines, each marked as somebody's words."""
    return [f"  | {line}" for line in visible(text).split("\n")]


#: Characters that something else than a letter, a space or a sign is told by, and keys whose text may have lines.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"
_WITH_LINES = ("description",)


def require_plain(agreed: BaseModel, what: str) -> None:
    """Raise `InputError` where a text of what people are to agree on holds a control or format character.

    Line ends and tabs may stand in a description, U+200C and U+200D between letters, where some scripts need them. It
    is asked when something comes in and not when it is read again: what was agreed before stays agreed.
    """
    _require_plain(agreed.model_dump(mode="json"), what, lines=False)


def _require_plain(value: JsonValue, place: str, *, lines: bool) -> None:
    if isinstance(value, str):
        for at, character in enumerate(value):
            if unicodedata.category(character) not in _ACTING or (lines and character in "\n\t"):
                continue
            if character in _JOINERS and at and _is_letter(value[at - 1]) and _is_letter(value[at + 1 : at + 2]):
                continue
            raise InputError(
                f"{place}: character {at + 1} is U+{ord(character):04X} ({_name(character)}), which people don't see, "
                "or which changes what they see; take it out"
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            _require_plain(key, f"{place}, a key", lines=False)
            _require_plain(inner, f"{place}, {key}", lines=key in _WITH_LINES)
    elif isinstance(value, list):
        for number, inner in enumerate(value, start=1):
            _require_plain(inner, f"{place} {number}", lines=lines)


def _is_letter(character: str) -> bool:
    """Return whether it is a letter, or a mark that belongs to one; not for no character."""
    return bool(character) and unicodedata.category(character)[0] in "LM"


def _name(character: str) -> str:
    return unicodedata.name(character, "a control character").lower()


def shows(character: str) -> bool:
    """Return whether it leaves ink, so that people can tell a word with it from one without."""
    return character not in BLANK and unicodedata.category(character) not in {*_ACTING, "Zs"}


def _acts_or_hides(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in BLANK or unicodedata.category(character) in _NOT_SHOWN
