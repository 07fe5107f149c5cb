"""Withdrawal of a patient's consent: from the next round on, no study here trains or evaluates on that patient.

**Theorem.** Let a name be entered as withdrawn from a population (`enter` has returned), and not be undone. Then no
worker is given, for any round whose letter this hospital has not read to its end by then, a row that bears this name
in the frozen records of its study; and unless people said that other spellings are other patients, none that bears a
name of the same `spelling_key`. This holds whatever table and mapping say by then, and for records that are prepared
later.

Proof. A worker gets rows from `encoded.partitions` alone, which keeps of the frozen records those that `stays` keeps,
and `stays` compares names as they stand in these records with the list, whatever the table says. A round takes the list
once its letter is read (`rounds.run`), and its work begins with a worker whose rows were chosen by a list that held all
of that (`row_work`): one that has more rows is ended first. The list is on the disk when `enter` returns, and is made
shorter by `undo` alone.

Assumptions: the patient's rows bear the name that was entered, or a spelling of it: under a name that has nothing in
common with it nobody is found, so people are told what was found where (`whereabouts`), and a name that is found
nowhere is refused. The records name patients (`patient` of mapping.toml). The file system keeps what it has
acknowledged, and neither list nor log are changed by hand; where the list is older than the log, see below.

What it does not undo: models and sums that were released before, of which the patient was a part. Those are bounded
by the privacy loss that was charged, and no software can call them back. The patient's share of the budget stays spent.

A withdrawal is undone by two people (`two_people`), until a round of its population has been charged since: then it
has been acted on, and a patient who consents again comes with a later table, under a new pseudonym. What is logged, and
when a worker starts for it, follows from what people enter, so that whether anybody was found moves nothing that leaves
(I16); what people enter once they have looked is theirs to choose. The time that looking takes is hidden in a number of
ticks that follows from declared figures.

Entries lie in one file of the private folder (mode 0600) and nowhere else: a pseudonym, or for all its spellings a
space, by which no pseudonym begins, and its `spelling_key`. The audit log holds a keyed commitment to each
(`commitments`), so that it counts them and names nobody (I12).

**A list that was restored from a backup puts nobody back.** Whoever is on the list *or* in the log is left out of
every round; and where the list lacks somebody whom the log knows, nothing runs (`reconcile`) until that patient is
entered again or two people have settled it, which keeps the union. What it rests on: log and ledger's anchor did not
go back with the list unnoticed (`ledger`), the key of the commitments is the same, and withdrawals since the backup of
a log that is lost, anchors included, are entered again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from datasites.hospital.budget import ledger_log
from datasites.hospital.budget.withdrawn import commitments_to, listed, listed_in, settled_file
from datasites.hospital.config import Home
from datasites.hospital.data.cells import pseudonym, spelling_key
from datasites.hospital.site import Site
from datasites.study.audit_chain import records
from datasites.study.errors import InputError
from datasites.study.files import held, replace_durably

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class NotToUndo(InputError):
    """A withdrawal can't be taken back: there is none, or a round was held without the patient."""


def withdrawn(home: Home, dataset: str) -> frozenset[str]:
    """Return the entries of the patients who have withdrawn from a dataset, or from another one of its population."""
    return frozenset().union(*(listed_in(home.withdrawals / f"{name}.json") for name in _names(home, dataset)))


def _names(home: Home, dataset: str) -> set[str]:
    # A dataset may have been given another population than its own after somebody withdrew.
    return {dataset, home.dataset(dataset).population}


def entry_of(patient: str, *, all_spellings: bool = False) -> str:
    """Return the entry for a patient, named as in the patient column; raises `InputError` for an empty name."""
    name = pseudonym(patient)
    if name is None:
        raise InputError("no pseudonym was given; name the patient as the table does")
    return f" {spelling_key(name)}" if all_spellings else name


def enter(site: Site, dataset: str, entry: str, **by: str) -> int:
    """Leave a patient out from the next round on and log that; returns how many have withdrawn.

    entry: of `entry_of`; it need not be in any table, and holds for rows that come later. People do this through
    `consent.withdraw`.
    """
    with _list_lock(site.home):
        number = add(site.home, dataset, entry)
        _log(site, dataset, entry, **by, patients=number)
    return number


@contextmanager
def _list_lock(home: Home) -> Iterator[None]:
    """Lock the list against other changes: log and list say the same once this is over."""
    with held(home.withdrawals / "entering.lock"):
        yield


def add(home: Home, dataset: str, entry: str) -> int:
    """Put an entry on the list; returns how many there are."""
    home.withdrawals.mkdir(mode=0o700, exist_ok=True)
    path = home.withdrawals / f"{home.dataset(dataset).population}.json"
    # Read, added to and written while nobody else does, so that no withdrawal can undo another.
    with held(path.with_suffix(".lock")):
        everybody = sorted(withdrawn(home, dataset) | {entry})
        replace_durably(path, json.dumps(everybody).encode())
    return len(everybody)


def stays(home: Home, dataset: str, patients: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Return for each row whether its patient has not withdrawn, by the list and by the log; shape (rows,)."""
    import numpy as np  # for whoever holds rows; all who gate on a budget import this room

    left_out = withdrawn(home, dataset)
    lacking = _logged(home, _names(home, dataset)) - frozenset(commitments_to(home, left_out).values())
    if not left_out and not lacking:
        return np.ones(len(patients), dtype=np.bool_)
    entries = {name: {name, entry_of(name, all_spellings=True)} for name in map(str, np.unique(patients))}
    if lacking:
        commitments = commitments_to(home, frozenset[str]().union(*entries.values()) - left_out)
        left_out |= {entry for entry, commitment in commitments.items() if commitment in lacking}
    return ~np.isin(patients, sorted(name for name, forms in entries.items() if forms & left_out))


def is_withdrawn(home: Home, dataset: str, entry: str) -> bool:
    """Say whether an entry stands on the list or in the log."""
    (commitment,) = commitments_to(home, [entry]).values()
    return entry in withdrawn(home, dataset) or commitment in _logged(home, _names(home, dataset))


def _logged(home: Home, names: Iterable[str]) -> frozenset[str]:
    logged = ledger_log.tell(home).withdrawn
    return frozenset[str]().union(*(logged.get(name, frozenset()) for name in names))


def to_undo(home: Home, dataset: str, patient: str) -> dict[str, Any]:
    """Return what identifies a withdrawal that people revoke, under the exact name and under all its spellings.

    {"populations": names, "commitments": of 64 hex digits, "record": of the log, by which a person entered it last, 0
    for none}.
    Raises `NotToUndo`.
    """
    entries = {entry_of(patient, all_spellings=alike) for alike in (False, True)}
    known = {entry: it for entry, it in commitments_to(home, entries).items() if is_withdrawn(home, dataset, entry)}
    if not known:
        raise NotToUndo(f"dataset {dataset}: nobody has withdrawn under that name; give it as it was entered")
    names, commitments = sorted(_names(home, dataset)), sorted(known.values())
    record = require_not_acted_on(home, names, commitments)
    return {"populations": names, "commitments": commitments, "record": record}


def require_not_acted_on(home: Home, populations: Iterable[str], commitments: Iterable[str]) -> int:
    """Raise `NotToUndo` where a round was charged since; the last record by which a person entered it, or 0.

    Who is on the list and was logged by no person may have been left out of any round: `enter` was killed, or the log
    is younger than the list.
    """
    names, wanted = frozenset(populations), frozenset(commitments)
    since: dict[object, int] = dict.fromkeys(wanted, 0)
    entered, charged, last = set[object](), list[int](), 0
    for record in records(home.audit):
        if record.fields.get("population") not in names:
            continue
        commitment = record.fields.get("commitment")
        if record.kind == ledger_log.CHARGED:
            charged.append(record.seq)
        elif commitment not in wanted:
            continue
        elif record.kind == ledger_log.WITHDRAWN and "person" in record.fields:
            last = record.seq
            if commitment not in entered:
                since[commitment] = last
            entered.add(commitment)
        elif record.kind == ledger_log.WITHDRAWAL_UNDONE:
            since[commitment] = record.seq
            entered.discard(commitment)
    first = min(since.values(), default=0)
    held = next((seq for seq in charged if seq > first), 0)
    if since and held:
        raise NotToUndo(
            f"withdrawal of record {last} of the log: record {held} charges a round that was held without the patient, "
            "so it can't be undone any more; a patient who consents again comes with a later table, under a new "
            "pseudonym"
        )
    return last


def undo(
    site: Site,
    populations: Iterable[str],
    commitments: Iterable[str],
    seq: int,
    by: tuple[str, str],
    reason: str,
) -> None:
    """Take a withdrawal back, on the word of two people (`two_people`); raises `NotToUndo`.

    seq: the record, as in `to_undo`. One that was entered since is another withdrawal, of which the first person said
    nothing. It widens, so it is logged first. Killed in between, the patient is still left out, and it may be confirmed
    again.
    """
    home, names, put_back = site.home, sorted(populations), frozenset(commitments)
    entered = {"entered_by": by[0], "confirmed_by": by[1], "reason": reason}
    with _list_lock(home):
        last = require_not_acted_on(home, names, put_back)
        if last != seq:
            raise NotToUndo(
                f"the patient has withdrawn once more since this was entered, by record {last} of the log; withdraw "
                "this entry, and enter again that both are undone"
            )
        known = {name: sorted(put_back & (listed(home, name) | _logged(home, [name]))) for name in names}
        for name, theirs in known.items():
            for commitment in theirs:
                site.audit.append(ledger_log.WITHDRAWAL_UNDONE, population=name, commitment=commitment, **entered)
        ledger_log.write_anchor(home)
        for name in names:
            path, settled = home.withdrawals / f"{name}.json", settled_file(home, name)
            with held(path.with_suffix(".lock")):
                left = [entry for entry, it in commitments_to(home, listed_in(path)).items() if it not in put_back]
                if len(left) < len(listed_in(path)):
                    replace_durably(path, json.dumps(left).encode())
            if put_back & listed_in(settled):
                replace_durably(settled, json.dumps(sorted(listed_in(settled) - put_back)).encode())


def _log(site: Site, dataset: str, entry: str, **fields: str | int) -> None:
    """Let log and anchor know that a patient is on the list."""
    population = site.home.dataset(dataset).population
    (commitment,) = commitments_to(site.home, [entry]).values()
    site.audit.append(ledger_log.WITHDRAWN, dataset=dataset, population=population, commitment=commitment, **fields)
    ledger_log.write_anchor(site.home)
