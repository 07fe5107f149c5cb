"""What strangers wrote, as people see it: no character of it does anything but show.

A character that is invisible, turns text around (bidirectional marks), or tells a terminal what to do could make a
reviewer read something else than what was submitted.
"""

from __future__ import annotations

import unicodedata

#: Control, format, surrogate, private and unassigned characters, and separators of lines and paragraphs.
_NOT_SHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """The text with each such character, but for line ends and tabs, as its code point."""
    return "".join(
        f"\u27e6U+{ord(c):04X}\u27e7" if c not in "\n\t" and unicodedata.category(c) in _NOT_SHOWN else c
        for c in text.replace("\r\n", "\n").replace("\r", "\n")
    )
