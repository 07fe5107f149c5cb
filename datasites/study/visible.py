"""What strangers wrote, as people see it: no character of it does anything but show.

A character that is invisible, turns text around (bidirectional marks), or tells a terminal what to do could make a
reviewer read something else than what was submitted.
"""

from __future__ import annotations

import unicodedata

#: Control, format, surrogate, private and unassigned characters, and separators of lines and paragraphs.
_NOT_SHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Letters, marks and a symbol that show nothing: fillers, joiners, selectors of a variant, the empty one of Braille.
_BLANK = frozenset(
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
    """The text with each such character, but for line ends and tabs, as its code point."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(f"\u27e6U+{ord(c):04X}\u27e7" if _acts_or_hides(c) else c for c in plain)


def one_line(text: str) -> str:
    """`visible`, with line ends and tabs spelt out as well: what stands here can't pass for the lines below it."""
    return visible(text).replace("\n", "\u27e6U+000A\u27e7").replace("\t", "\u27e6U+0009\u27e7")


def quoted(text: str) -> list[str]:
    """`visible` lines, each marked as somebody's words."""
    return [f"  | {line}" for line in visible(text).split("\n")]


def _acts_or_hides(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _BLANK or unicodedata.category(character) in _NOT_SHOWN
