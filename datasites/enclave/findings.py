"""A finding of the verifier, and the list that collects them. Standard library only."""

from __future__ import annotations

import ast
from dataclasses import dataclass

#: Of one file; findings are stored with its case and read by people.
MOST_FINDINGS = 200


@dataclass(frozen=True, order=True)
class CodeFinding:
    """One reason not to run a file: where (line from 1, column from 0), which rule, why, and what to write instead."""

    line: int
    column: int
    rule: str
    reason: str
    remedy: str
    filename: str = "model.py"

    def __str__(self) -> str:
        """Return one line for a terminal."""
        ending = f"; {self.remedy}" if self.remedy else ""
        return f"{self.filename}:{self.line}:{self.column + 1}: {self.rule}: {self.reason}{ending}"


class FindingList:
    """Collects findings of one file; the same finding is kept once."""

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._found: set[CodeFinding] = set()

    def at(self, line: int, column: int, rule: str, reason: str, remedy: str) -> None:
        """Add a finding at a place in the text."""
        self._found.add(CodeFinding(line, column, rule, reason, remedy, self._filename))

    def node(self, node: ast.AST, rule: str, reason: str, remedy: str) -> None:
        """Add a finding at a node of the syntax tree."""
        self.at(getattr(node, "lineno", 1), getattr(node, "col_offset", 0), rule, reason, remedy)

    def findings(self) -> tuple[CodeFinding, ...]:
        """Return findings by line and column: the first `MOST_FINDINGS`, and how many more there are."""
        found = sorted(self._found)
        if len(found) <= MOST_FINDINGS:
            return tuple(found)
        first = found[MOST_FINDINGS]
        more = f"{len(found) - MOST_FINDINGS} more findings from here on"
        return (
            *found[:MOST_FINDINGS],
            CodeFinding(first.line, first.column, "size", more, "correct those above first", self._filename),
        )
