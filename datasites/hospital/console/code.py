"""Frozen code as lines to read: highlighted by class names, findings at their lines, and differences between versions.

What a reviewer sees must be what runs, so all of it is `visible`. Nothing here is executed.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.safestring import SafeString, mark_safe
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, TOMLLexer

from datasites.study.visible import visible

#: Pairs of equal lines that are looked at to show one file's difference: some tenths of a second, whatever it holds.
MOST_PAIRS = 2_000_000
_IN_PART = "Too many lines are alike to compare all: the rest is shown whole, as removed and added, the same lines too."


@dataclass(frozen=True)
class CodeLine:
    """One line: number from 1, highlighted HTML (escaped by pygments), and what the verifier found there."""

    number: int
    html: SafeString
    findings: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class DiffLine:
    """One line of a difference. kind: "add", "del", "same" or "gap"; numbers are 0 where there is none."""

    kind: str
    old: int
    new: int
    text: str


def code_lines(name: str, text: str, findings: Sequence[Mapping[str, Any]] = ()) -> tuple[CodeLine, ...]:
    """Return a file as lines."""
    options = {"stripnl": False, "ensurenl": False}
    lexer = PythonLexer(**options) if name.endswith(".py") else TOMLLexer(**options)
    shown = highlight(visible(text), lexer, HtmlFormatter(nowrap=True, classprefix="hl-"))
    by_line: dict[int, list[Mapping[str, Any]]] = {}
    for finding in findings:
        by_line.setdefault(int(finding["line"]), []).append(finding)
    return tuple(
        # Pygments escapes the text and closes its spans at the end of each line.
        CodeLine(number, mark_safe(html), tuple(by_line.get(number, ())))
        for number, html in enumerate(shown.removesuffix("\n").split("\n"), start=1)
    )


class _Matcher(difflib.SequenceMatcher[str]):
    """Compares lines until `MOST_PAIRS` is used up; what is left then is taken for removed and added."""

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new, autojunk=False)
        self.pairs, self._old, self._in_new = 0, old, Counter(new)

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> difflib.Match:
        if self.pairs <= MOST_PAIRS:
            self.pairs += sum(1 + self._in_new[line] for line in self._old[alo:ahi])
        if self.pairs > MOST_PAIRS:
            return difflib.Match(alo, blo, 0)
        return super().find_longest_match(alo, ahi, blo, bhi)


def diff_lines(old: str, new: str, context: int = 3) -> tuple[DiffLine, ...]:
    """Return what changed from `old` to `new`, with some lines around it; empty when nothing did.

    Of files with so many equal lines that to compare them would take long, the rest is shown whole; a line above says
    so. The time that this takes grows no faster than the files.
    """
    a, b = visible(old).split("\n"), visible(new).split("\n")
    if a == b:
        return ()
    matcher = _Matcher(a, b)
    groups = list(matcher.get_grouped_opcodes(context))
    lines = [DiffLine("gap", 0, 0, _IN_PART)] if matcher.pairs > MOST_PAIRS else []
    for place, group in enumerate(groups):
        if place:
            lines.append(DiffLine("gap", 0, 0, ""))
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                lines += [DiffLine("same", a1 + i + 1, b1 + i + 1, a[a1 + i]) for i in range(a2 - a1)]
            else:
                lines += [DiffLine("del", i + 1, 0, a[i]) for i in range(a1, a2)]
                lines += [DiffLine("add", 0, i + 1, b[i]) for i in range(b1, b2)]
    return tuple(lines)
