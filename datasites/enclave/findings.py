"""A finding of the verifier, and the list that collects them. Standard library only."""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """One reason not to run a file: where (line from 1, column from 0), which rule, why, and what to write instead."""

    line: int
    column: int
    rule: str
    reason: str
    remedy: str
    filename: str = "model.py"

    def __str__(self) -> str:
        """One line for a terminal."""
        ending = f"; {self.remedy}" if self.remedy else ""
        return f"{self.filename}:{self.line}:{self.column + 1}: {self.rule}: {self.reason}{ending}"


class Report:
    """Collects findings of one file; the same finding is kept once."""

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._found: set[Finding] = set()

    def at(self, line: int, column: int, rule: str, reason: str, remedy: str) -> None:
        """Add a finding at a place in the text."""
        self._found.add(Finding(line, column, rule, reason, remedy, self._filename))

    def node(self, node: ast.AST, rule: str, reason: str, remedy: str) -> None:
        """Add a finding at a node of the syntax tree."""
        self.at(getattr(node, "lineno", 1), getattr(node, "col_offset", 0), rule, reason, remedy)

    def findings(self) -> tuple[Finding, ...]:
        """All findings by line and column."""
        return tuple(sorted(self._found))
