"""What `plausible` finds in a table, as people are told it and answer it (`answers`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "no_rows",
    "open_quote",
    "not_ended",
    "spellings",
    "patients",
    "repeated",
    "last_row",
    "missing",
    "constant",
    "infinite",
    "out_of_range",
    "coded",
    "unused_code",
    "one_number",
]
#: Findings that are shown and block nothing.
NOTES: frozenset[Kind] = frozenset(["unused_code", "one_number"])
#: Findings that no answer lifts.
FINAL: frozenset[Kind] = frozenset(["no_rows"])


@dataclass(frozen=True)
class TableFinding:
    """One thing to look at. column: the study's name of a feature, or "". share: how much of the table, 0 to 1."""

    kind: Kind
    column: str
    share: float
    text: str

    @property
    def name(self) -> str:
        """By what people answer it."""
        return f"{self.kind}:{self.column}" if self.column else self.kind

    @property
    def blocks(self) -> bool:
        """Say whether the dataset isn't ready until somebody has answered it."""
        return self.kind not in NOTES
