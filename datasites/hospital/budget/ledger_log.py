"""The ledger as the audit log records it: every reservation and charge in full, and what patients were promised.

The log is read once and followed from there, record by record along its chain; a charge reads what was appended since
the last one and no more. What was read is kept beside the journals' anchors with the position that it was read at
(`LedgerAnchor`), so that a process that starts reads on from there. The anchor also shows whether the log is the one
that this hospital wrote last: a home that was restored from a backup has no anchor (the folder is kept out of backups),
or one that knows more than the log.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from datasites.hospital.budget.balances import Accounts, Prices, StoredPrice, StudyAccount
from datasites.hospital.budget.openings import under_way
from datasites.hospital.config import Home
from datasites.hospital.models import BudgetFact, LedgerEntry, Round
from datasites.study.audit_chain import RESTORED, AuditError, LogRecord, Position, follow, holds
from datasites.study.canonical import Agreed, canonical_json
from datasites.study.files import held, replace_durably
from datasites.study.manifest import Sha256

#: Kinds of records that say something of budgets.
RESERVED, CHARGED, RELEASED = "reserved", "charged", "reservation_released"
OPENED, NARROWED, WIDENED = "budget_opened", "budget_narrowed", "budget_widened"
IDENTITY_SET, IDENTITY_CHANGED = "identity_set", "identity_changed"
DELTA_ACCEPTED, OTHER_PATIENTS = "delta_accepted", "other_patients"
#: A patient withdrew consent: whose records are left out, as a keyed commitment to the pseudonym.
WITHDRAWN = "withdrawn"
#: Two people took a withdrawal back before a round was held without the patient.
WITHDRAWAL_UNDONE = "withdrawal_undone"
#: Patients were kept for a population: the token of the list that they are on since (`patients`).
PATIENTS_KEPT = "patients_kept"
#: Bytes of a token; and what stands for the one of the list before the first.
TOKEN = 16
NO_TOKEN = "00" * TOKEN
#: A restored home was settled by two people (`RESTORED`), and what a population is promised since.
SETTLED = "budget_settled"

Standing = Literal["new", "current", "missing", "behind"]


class Promise(Agreed):
    """What the log says of one population."""

    epsilon: float
    delta: float
    order: int = 0
    fraction: float = 0.0
    split: str = ""
    identity: str = ""
    both_sides: bool = False
    accepted_delta: float = 0.0


@dataclass(frozen=True)
class LogState:
    """What the log says up to some record. studies: by population, then by study.

    withdrawn: by population, keyed commitments to those who have withdrawn (`withdrawal`), and not undone that.
    older: lines that an older version wrote, without population and amounts: study, and round (0: its reservation).
    lists: by population, the token of its list of patients. lists_begin: what stands for that of one without. Both are
    such as no list has once two people have settled a restore in which the log lost records.
    """

    populations: Mapping[str, Promise] = field(default_factory=dict)
    studies: Mapping[str, Mapping[str, StudyAccount]] = field(default_factory=dict)
    others: frozenset[tuple[str, str]] = frozenset()
    withdrawn: Mapping[str, frozenset[str]] = field(default_factory=dict)
    older: frozenset[tuple[str, int]] = frozenset()
    lists: Mapping[str, str] = field(default_factory=dict)
    lists_begin: str = NO_TOKEN

    def token(self, population: str) -> str:
        """Return the token of the population's list of patients."""
        return self.lists.get(population, self.lists_begin)

    def of(self, population: str) -> Mapping[str, StudyAccount]:
        """Return the accounts of one population."""
        return self.studies.get(population, {})

    def accounts_of_study(self, study_hash: str) -> list[StudyAccount]:
        """Return what one study reserved and charged, by population; no account where the log knows nothing of it."""
        return [accounts[study_hash] for accounts in self.studies.values() if study_hash in accounts]

    def unpriced(self, more: Iterable[Accounts] = ()) -> list[str]:
        """Return studies with lines of an older version whose amounts stand neither in later records nor in `more`."""
        known = [*self.studies.values(), *more]
        return sorted(
            {study for study, round in self.older if not any(_has_line(one.get(study), round) for one in known)}
        )

    def after(self, record: LogRecord) -> LogState:
        """Return what the log says with one more record."""
        fields = record.fields
        try:
            if record.kind in (RESERVED, CHARGED, RELEASED):
                return (
                    self._with_line(record.kind, fields)
                    if "population" in fields
                    else self._with_older_line(record.kind, fields)
                )
            if record.kind == WITHDRAWN:
                # Records of older versions count patients, and say nothing of who they are.
                return self._with_withdrawal(fields) if "commitment" in fields else self
            if record.kind == WITHDRAWAL_UNDONE:
                return self._without_withdrawal(fields)
            if record.kind == OTHER_PATIENTS:
                one, other = sorted(fields["populations"])
                return replace(self, others=self.others | {(one, other)})
            if record.kind == PATIENTS_KEPT:
                return replace(self, lists={**self.lists, str(fields["population"]): str(fields["token"])})
            if record.kind == RESTORED:
                return self._restored(record)
            changed = _promise(record.kind, fields, self.populations.get(str(fields.get("population", ""))))
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(
                f"audit log: record {record.seq} ({record.kind}) is not of this version, so that it doesn't show what "
                "was promised and spent; nothing runs: keep this home with the version that wrote it, and give "
                "its patients no second budget in a new one"
            ) from error
        if changed is None:
            return self
        return replace(self, populations={**self.populations, str(fields["population"]): changed})

    def _restored(self, record: LogRecord) -> LogState:
        if record.fields["standing"] == "current" and not record.fields["heads"]:
            return self  # the log has lost nothing, so it knows the last token
        unknown = record.hash[: 2 * TOKEN]
        return replace(self, lists=dict.fromkeys(self.lists, unknown), lists_begin=unknown)

    def _with_withdrawal(self, fields: Mapping[str, Any]) -> LogState:
        population = str(fields["population"])
        names = self.withdrawn.get(population, frozenset()) | {str(fields["commitment"])}
        return replace(self, withdrawn={**self.withdrawn, population: names})

    def _without_withdrawal(self, fields: Mapping[str, Any]) -> LogState:
        population = str(fields["population"])
        names = self.withdrawn.get(population, frozenset()) - {str(fields["commitment"])}
        return replace(self, withdrawn={**self.withdrawn, population: names})

    def _with_line(self, kind: str, fields: Mapping[str, Any]) -> LogState:
        population, study = str(fields["population"]), str(fields["study"])
        known = self.of(population).get(study) or StudyAccount()
        if kind == RELEASED:
            known = replace(known, released=True)
        else:
            prices = _prices(fields["charges"], fields["local_charges"])
            if kind == RESERVED:
                # Again only where two people have settled that it had not ended.
                known = replace(known, reserved=prices, released=False)
            else:
                known = replace(known, charged={**known.charged, int(fields["round"]): prices})
        return replace(self, studies={**self.studies, population: {**self.of(population), study: known}})

    def _with_older_line(self, kind: str, fields: Mapping[str, Any]) -> LogState:
        if kind == RELEASED:
            return self
        round = int(fields["round"]) if kind == CHARGED else 0
        return replace(self, older=self.older | {(str(fields["study"]), round)})


def _has_line(account: StudyAccount | None, round: int) -> bool:
    if account is None:
        return False
    return bool(account.reserved) if round == 0 else bool({0, round} & account.charged.keys())


def in_log(prices: Prices) -> dict[str, str]:
    """Return the fields of a record that hold these prices."""
    charges, local = _texts(prices)
    return {"charges": charges, "local_charges": local}


def _texts(prices: Prices) -> tuple[str, str]:
    return (
        _text({partition: price.charges for partition, price in prices.items()}),
        _text({partition: price.local for partition, price in prices.items()}),
    )


def _text(by_partition: Mapping[str, str]) -> str:
    return "{" + ",".join(f'"{partition}":{by_partition[partition]}' for partition in sorted(by_partition)) + "}"


def _prices(charges: str, local: str) -> dict[str, StoredPrice]:
    first, second = json.loads(charges), json.loads(local)
    return {partition: StoredPrice.read(first[partition], second[partition]) for partition in first}


def _promise(kind: str, fields: Mapping[str, Any], known: Promise | None) -> Promise | None:
    """Return the promise after a record; None for one that says nothing of promises."""
    if kind == OPENED:
        names = ("epsilon", "delta", "order", "fraction", "split")
        return Promise.model_validate({name: fields[name] for name in names})
    if kind == SETTLED:
        return Promise.model_validate({name: fields[name] for name in Promise.model_fields})
    changes: dict[str, Any] = {}
    if kind in (NARROWED, WIDENED):
        changes = {"epsilon": float(fields["epsilon"]), "delta": float(fields["delta"])}
    elif kind == IDENTITY_SET:
        changes = {"identity": str(fields["column"])}
    elif kind == IDENTITY_CHANGED:
        changes = {"both_sides": True}
    elif kind == DELTA_ACCEPTED and known is not None:
        changes = {"accepted_delta": max(known.accepted_delta, float(fields["delta"]))}
    if not changes:
        return None
    if known is None:
        raise ValueError("of a population that was never opened")
    return known.model_copy(update=changes)


class _Line(Agreed):
    """One study in the anchor. Rounds that were charged alike are one run: first, last, prices."""

    population: str
    study: str
    reserved: tuple[str, str]
    charged: tuple[tuple[int, int, str, str], ...]
    released: bool


class LedgerAnchor(Agreed):
    """What the log said, and where it ended then: record `seq` with `hash`, at byte `offset`."""

    format: Literal[1] = 1
    seq: int
    hash: Sha256
    offset: int
    populations: dict[str, Promise]
    others: tuple[tuple[str, str], ...]
    withdrawn: dict[str, tuple[str, ...]] = Field(repr=False)
    older: tuple[tuple[str, int], ...]
    studies: tuple[_Line, ...] = Field(repr=False)
    lists: dict[str, str] = {}
    lists_begin: str = NO_TOKEN

    def canonical(self) -> bytes:
        """Return the bytes without the lists where the log knows of none, as an older version wrote them."""
        knows = self.lists or self.lists_begin != NO_TOKEN
        return canonical_json(self.model_dump(mode="json", exclude=set() if knows else {"lists", "lists_begin"}))

    @classmethod
    def of(cls, at: Position, log_state: LogState) -> LedgerAnchor:
        """Make the anchor of a position in the log."""
        lines = [
            _Line(
                population=population,
                study=study,
                reserved=_texts(account.reserved),
                charged=_runs(account.charged),
                released=account.released,
            )
            for population, studies in sorted(log_state.studies.items())
            for study, account in sorted(studies.items())
        ]
        return cls(
            seq=at.seq,
            hash=at.hash,
            offset=at.offset,
            populations=dict(log_state.populations),
            others=tuple(sorted(log_state.others)),
            withdrawn={population: tuple(sorted(names)) for population, names in log_state.withdrawn.items()},
            older=tuple(sorted(log_state.older)),
            studies=tuple(lines),
            lists=dict(log_state.lists),
            lists_begin=log_state.lists_begin,
        )

    def content(self) -> LogState:
        """Return what the anchor holds."""
        studies: dict[str, dict[str, StudyAccount]] = {}
        for line in self.studies:
            charged = {
                round: _prices(charges, local)
                for first, last, charges, local in line.charged
                for round in range(first, last + 1)
            }
            account = StudyAccount(_prices(*line.reserved), charged, line.released)
            studies.setdefault(line.population, {})[line.study] = account
        withdrawn = {population: frozenset(names) for population, names in self.withdrawn.items()}
        others, older = frozenset(self.others), frozenset(self.older)
        return LogState(self.populations, studies, others, withdrawn, older, self.lists, self.lists_begin)


def _runs(charged: Mapping[int, Prices]) -> tuple[tuple[int, int, str, str], ...]:
    runs: list[tuple[int, int, str, str]] = []
    for round in sorted(charged):
        charges, local = _texts(charged[round])
        if runs and runs[-1][1] == round - 1 and runs[-1][2:] == (charges, local):
            runs[-1] = (runs[-1][0], round, charges, local)
        else:
            runs.append((round, round, charges, local))
    return tuple(runs)


@dataclass(frozen=True)
class _Read:
    at: Position
    log_state: LogState
    standing: Standing


_lock = threading.Lock()
_read: dict[Path, _Read] = {}


def tell(home: Home) -> LogState:
    """Return what the log says now; raises `AuditError` where it does not continue the log that was read before."""
    return _follow(home).log_state


def standing(home: Home) -> Standing:
    """Say whether the log was, when this process first read it, the one that this hospital wrote last.

    new: neither it nor the database tells of a budget yet, but for those that are being opened. current: it holds what
    the anchor knows. missing: there is no anchor any more. behind: the anchor knows of records that it does not hold.
    """
    return _follow(home).standing


def anchored(home: Home) -> LogState | None:
    """Return what the anchor knows, whatever the log says; None where there is no anchor."""
    anchor = _anchor(home)
    return None if anchor is None else anchor.content()


def forget(home: Home) -> None:
    """Read the whole log again at the next occasion, as a process does that starts."""
    with _lock:
        _read.pop(home.audit, None)


def write_anchor(home: Home) -> None:
    """Let the anchor know what the log says now; never less than another process has let it know.

    Does nothing while the log is not the one that the anchor knows, or while the anchor is missing: that must be seen
    until two people have settled it.
    """
    if _follow(home).standing in ("new", "current"):
        _write_anchor(home)


def settle_anchor(home: Home) -> None:
    """Take the log as it is for the newest one, once two people have settled what was lost."""
    with _lock:
        _read[home.audit] = replace(_catch_up(home.audit, _read.get(home.audit) or _start(home)), standing="current")
    _write_anchor(home)


def _write_anchor(home: Home) -> None:
    path = home.ledger_anchor
    with held(path.with_name(path.name + ".lock")):
        # The log is read after the lock is held: whoever comes later has seen at least what the one before wrote.
        now = _follow(home)
        replace_durably(path, LedgerAnchor.of(now.at, now.log_state).canonical())


def _follow(home: Home) -> _Read:
    with _lock:
        known = _read.get(home.audit) or _start(home)
        _read[home.audit] = known = _catch_up(home.audit, known)
        return known


def _start(home: Home) -> _Read:
    anchor = _anchor(home)
    if anchor is not None and holds(home.audit, Position(anchor.seq, anchor.hash, anchor.offset)):
        return _Read(Position(anchor.seq, anchor.hash, anchor.offset), anchor.content(), "current")
    whole = _catch_up(home.audit, _Read(Position(), LogState(), "new"))
    if anchor is not None:
        return replace(whole, standing="behind")
    return whole if _begins(home, whole.log_state) else replace(whole, standing="missing")


def _begins(home: Home, log_state: LogState) -> bool:
    """Say whether nothing shows that an anchor was ever written: log, database and journals know of nothing to lose."""
    if log_state.studies or log_state.older or LedgerEntry.objects.exists() or Round.objects.exists():
        return False
    # What a study leaves behind, each in a folder of its own that may have survived the others.
    left = (home.anchors.glob("[0-9a-f]*"), home.secagg.glob("*/journal"), home.identities.glob("*.bin"))
    if any(any(paths) for paths in left):
        return False
    known = log_state.populations.keys() | set(BudgetFact.objects.values_list("population__name", flat=True))
    return known <= under_way(home)


def _anchor(home: Home) -> LedgerAnchor | None:
    try:
        return LedgerAnchor.parse(home.ledger_anchor.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError) as error:
        raise AuditError(
            f"{home.ledger_anchor}: not an anchor of the ledger; move it away as evidence, and have two people say "
            "what was lost: `datasites budget restored`"
        ) from error


def _catch_up(log: Path, known: _Read) -> _Read:
    """Read what was appended."""
    at, log_state = known.at, known.log_state
    for position, record in follow(log, at):
        at, log_state = position, log_state.after(record)
    return _Read(at, log_state, known.standing)
