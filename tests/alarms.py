"""What a hospital's audit log and its service's own log say that must not be, whatever happened to it meanwhile.

One checker for all that kills processes, takes services away or meddles with the store. Alarms are looked for in every
record since a moment and whatever its fields are, since some name a case or nothing in place of a study.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from datasites.study.audit_chain import LogRecord

#: Kinds of record that tell people of what should not be. Of letters of others, or under their names
#: (`hospital.rounds.mail`).
OF_OTHERS = frozenset(
    {"letter_rejected", "letter_not_sent", "setup_refused", "survivors_refused", "events_left_out", "head_not_kept"}
)
#: Of an error in the hospital's own work on a study.
OF_ITSELF = frozenset({"contained", "stopped"})
ALL = OF_OTHERS | OF_ITSELF

#: Lines of a service's log that nothing but a defect writes: Python's own last words, an error of the logging format
#: that `datasites serve` sets, and the one line with which a command ends. What a service contains is an error too,
#: also where the audit log may not tell of it.
FATAL = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|^datasites: |\d,\d{3} (ERROR|CRITICAL) ")


@dataclass(frozen=True)
class Written:
    """What one hospital has written since a moment: records of its audit log, and lines of its service's log."""

    records: Sequence[LogRecord]
    service: str


def faults(
    written: Written, study: str, possible: Collection[int], sure: Collection[int], alarms: Collection[str] = ALL
) -> list[str]:
    """One sentence for each thing that must not be; none where all is well.

    A round is charged once, then released once, then unmasked once, or not at all from some point on; a round in
    `sure` is released, and no round is outside `possible`. alarms: kinds that nothing has given rise to.
    """
    return [
        *_of_rounds(written.records, study, possible, sure),
        *(
            f"alarm in record {record.seq}: {record.kind} {record.fields}"
            for record in written.records
            if record.kind in alarms
        ),
        *(f"alarm in the service's log: {line}" for line in alarming(written.service, alarms)),
    ]


def alarming(service: str, alarms: Collection[str] = ALL) -> list[str]:
    """Lines of a service's log that are an alarm, or name one of these kinds."""
    named = re.compile(rf"\b({'|'.join(sorted(alarms))}): ")
    return [line for line in service.splitlines() if FATAL.search(line) or named.search(line)]


def _of_rounds(
    records: Sequence[LogRecord], study: str, possible: Collection[int], sure: Collection[int]
) -> Iterator[str]:
    seqs: dict[str, dict[int, int]] = {}
    for kind in ("charged", "released", "unmasked"):
        found = [(r.fields["round"], r.seq) for r in records if r.kind == kind and r.fields.get("study") == study]
        seqs[kind] = dict(reversed(found))  # the first of each
        if twice := [number for number, times in Counter(number for number, _ in found).items() if times > 1]:
            yield f"{kind} more than once: rounds {twice}"
        if beyond := sorted(seqs[kind].keys() - set(possible)):
            yield f"{kind}, and not of the study: rounds {beyond}"
    for first, then in (("charged", "released"), ("released", "unmasked")):
        for number, seq in seqs[then].items():
            if seqs[first].get(number, seq) >= seq:
                yield f"round {number} was {then} without being {first} before"
    if missing := sorted(set(sure) - seqs["released"].keys()):
        yield f"not released: rounds {missing}"
