"""Kinds of record in a hospital's audit log that tell people of what should not be."""

from __future__ import annotations

#: Of letters of others, or under their names (`hospital.correspondence`).
OF_OTHERS = frozenset({"letter_rejected", "letter_not_sent", "setup_refused", "survivors_refused", "events_left_out"})
#: Of an error in the hospital's own work on a study.
OF_ITSELF = frozenset({"contained", "stopped"})
