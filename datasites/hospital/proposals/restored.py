"""After a restore: what was charged since the backup, by the larger loss of all that is known; two people confirm it.

Known are database, audit log and the ledger's anchor, line by line; the anchors of the journals, which say how far each
study came; and what the two people enter: studies that were approved after the backup, and heads of the log that other
parties hold. Where the ledger's anchor is missing, or others hold a head that the log lacks (so that the anchors may
have been restored with it), nothing says which rounds of an open study were released, and it counts as charged in full:
no round of it runs here any more.

The log then goes on from where it was restored, with a record that says so and a signed statement for the others
(`study.audit_chain.Fork`). All of it may be killed anywhere and confirmed again: each step only adds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from datasites.hospital.budget import balances, ledger_log, pending, withdrawn
from datasites.hospital.budget.balances import PrivacyCost, StudyAccount
from datasites.hospital.budget.ledger import ANY_ORDER
from datasites.hospital.budget.ledger_log import Promise
from datasites.hospital.budget.population import adopt, opened_order
from datasites.hospital.budget.promises import budget_lock, stored_promise
from datasites.hospital.budget.reconcile import require_one_story
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.config import Home
from datasites.hospital.models import Case, LedgerEntry, Population, Round
from datasites.hospital.site import Site
from datasites.privacy.events import compose, release
from datasites.study.audit_chain import RESTORED, AuditError, Fork, Head, PublicHead, records
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError, InputError
from datasites.study.files import replace_durably
from datasites.study.identity import BadSignature
from datasites.study.manifest import Name, Sha256

Positive = Annotated[float, Field(gt=0)]


class LostStudy(Agreed):
    """A study that was approved after the backup, as its approval or the researcher's result says; charged in full."""

    study: Sha256
    population: Name
    noise_multiplier: Positive
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1)]
    #: Of training; left out, it explains no more than one round and the final evaluation (`require_enough`).
    rounds: Annotated[int | None, Field(ge=1)] = None
    evaluation_multiplier: Positive
    interim: Annotated[int, Field(ge=0)] = 0
    interim_multiplier: Positive | None = None
    both_sides: bool = False

    @model_validator(mode="after")
    def _steps_of_rounds(self) -> Self:
        if self.rounds is not None and self.steps % self.rounds:
            raise ValueError(
                f"steps: {self.steps} are not those of {self.rounds} rounds; give the steps of all rounds together"
            )
        return self

    @property
    def most_releases(self) -> int:
        """Each round releases once, and so does the final evaluation; interim ones go with a round of training."""
        return (self.rounds or 1) + 1

    @property
    def summary(self) -> str:
        """The study in one line, for whoever confirms the settlement."""
        interim = self.interim_multiplier or self.evaluation_multiplier
        return (
            f"study {self.study[:12]} of population {self.population}, {self.steps} steps at noise "
            f"{self.noise_multiplier:g} and rate {self.sampling_rate:g}, final evaluation at noise "
            f"{self.evaluation_multiplier:g}"
            + (f", {self.interim} interim ones at noise {interim:g}" if self.interim else "")
            + (", on both sides" if self.both_sides else "")
        )

    def account(self, *, both_sides: bool) -> StudyAccount:
        """Return it reserved and charged in full, and ended; on both sides where nobody knows who was on which."""
        steps = release(self.noise_multiplier, self.sampling_rate, self.steps)
        interim = [release(self.interim_multiplier or self.evaluation_multiplier)] * self.interim
        events = {"training": steps, "held_out": compose([release(self.evaluation_multiplier), *interim])}
        if both_sides:
            events = dict.fromkeys(events, compose(list(events.values())))
        prices = balances.prices_of({partition: PrivacyCost(event, event) for partition, event in events.items()})
        return StudyAccount(prices, {0: prices}, released=True)


class Lost(Agreed):
    """The file that people write: one [[study]] for each that was approved after the backup."""

    study: tuple[LostStudy, ...] = ()


def unknown_heads(site: Site, heads: Iterable[Head | PublicHead]) -> list[Head | PublicHead]:
    """Return the heads of this hospital whose record the log lacks; raises `InputError` for a head it did not sign.

    Heads that were entered before an earlier settlement are known by its record.
    """
    heads = list(heads)
    for head in heads:
        try:
            head.check()
        except BadSignature as error:
            raise InputError(f"head {head.hash[:12]}: {error}; ask its holder again") from error
        if head.public_key != site.identity.public_key:
            raise InputError(f"head {head.hash[:12]}: is of another hospital's log; give heads of this one")
    wanted, found = {head.hash for head in heads}, set()
    for record in records(site.home.audit):
        found |= wanted & {record.hash}
        if record.kind == RESTORED:
            found |= wanted & set(record.fields["heads"])  # of a part that was lost, and settled
    return [head for head in heads if head.hash not in found]


def hold_against(site: Site, heads: Iterable[Head | PublicHead]) -> list[Head | PublicHead]:
    """Compare heads that others hold with the log; where it lacks one, nothing runs until two people settle that."""
    unknown = unknown_heads(site, heads)
    if unknown:
        known = _unknown_heads(site.home)
        entries = [head.model_dump(mode="json") for head in unknown]
        replace_durably(
            site.home.unknown_heads, json.dumps([*known, *(entry for entry in entries if entry not in known)]).encode()
        )
    return unknown


def _unknown_heads(home: Home) -> list[dict[str, object]]:
    try:
        found: list[dict[str, object]] = json.loads(home.unknown_heads.read_bytes())
    except FileNotFoundError:
        return []
    return found


def require_enough(site: Site, lost: Sequence[LostStudy]) -> None:
    """Raise `InputError` where something here shows that more was approved after the backup than `lost` says.

    A population that nothing here knows is a wrong name; an anchor of a journal shows its study; a log of an older
    version shows the studies that it was charged for; and heads that others hold show how many releases there were,
    which open studies alone may not have made.
    """
    _require_known_populations(site.home, lost)
    _require_known_journals(site.home, lost)
    _require_prices(site.home, lost)
    counted = [int(str(head["releases"])) for head in _unknown_heads(site.home) if head.get("format") == 2]
    if not counted:
        return
    now = site.audit.public_head().releases
    # A study may stand under several populations, and here and in the file: its rounds are released once.
    most: dict[str, int] = {}
    for studies in ledger_log.tell(site.home).studies.values():
        for study, account in studies.items():
            most[study] = max(most.get(study, 0), _may_have_released(site.home, study, account))
    still = sum(most.values())
    for entered in lost:
        most[entered.study] = max(most.get(entered.study, 0), entered.most_releases)
    more = sum(most.values()) - still
    if max(counted) > now + still + more:
        raise InputError(
            f"a head that others hold counts {max(counted)} releases; this log holds {now}, its studies can have made "
            f"{still} more, and those entered {more}: enter all studies that were approved after the backup, with "
            "their `rounds` (--lost FILE)"
        )


def _may_have_released(home: Home, study_hash: str, account: StudyAccount) -> int:
    """Say how many releases this log may lack of a study that it knows."""
    if account.is_in_full:
        return _planned_rounds(home, study_hash)  # since nothing says which of its rounds were released
    if not account.reserved or account.released:
        return 0
    return max(0, _planned_rounds(home, study_hash) - len(account.charged))


def _require_known_populations(home: Home, lost: Sequence[LostStudy]) -> None:
    known = {dataset.population for dataset in home.settings.datasets} | ledger_log.tell(home).populations.keys()
    known |= set(Population.objects.values_list("name", flat=True))
    for study in lost:
        if study.population not in known:
            raise InputError(
                f"study {study.study[:12]}: population {study.population!r}: not here (known: "
                f"{', '.join(sorted(known)) or 'none'}); what it cost must count for its own patients"
            )


def _require_known_journals(home: Home, lost: Sequence[LostStudy]) -> None:
    # A case alone says no more than that the study was proposed before the backup.
    known = {study.study for study in lost} | set(LedgerEntry.objects.values_list("study_hash", flat=True))
    for log_state in _known_accounts(home):
        known |= {study for studies in log_state.studies.values() for study in studies} | {
            study for study, _ in log_state.older
        }
    names = {path.name for path in home.anchors.glob("*")} if home.anchors.is_dir() else set()
    for name in sorted(name for name in names if re.fullmatch("[0-9a-f]{64}", name)):
        if name not in known:
            raise InputError(
                f"study {name[:12]}: {home.anchors / name} shows that it ran here, and no account knows it: it was "
                "approved after the backup; enter it (--lost FILE)"
            )


def _require_prices(home: Home, lost: Sequence[LostStudy]) -> None:
    populations = LedgerEntry.objects.values_list("population", flat=True).distinct()
    entered = {study.study: study.account(both_sides=study.both_sides) for study in lost}
    known = [entered, *map(balances.of_database, sorted(populations))]
    for study in ledger_log.tell(home).unpriced(known):
        raise InputError(
            f"study {study}: an older version charged it and kept no amounts in the log, and the database has not all "
            "of them: enter what it cost (--lost FILE)"
        )


def settle(site: Site, lost: Sequence[LostStudy], by: tuple[str, str], reason: str) -> None:
    """Keep the larger loss of all that is known, and go on from there. Runs in the caller's transaction."""
    home = site.home
    log_state, known = ledger_log.tell(home), _known_accounts(home)
    # As the log was found, and not whether an anchor is there now: one that was written since knows of nothing lost.
    sure = ledger_log.standing(home) != "missing" and not log_state.unpriced()
    # Whoever holds a head that the log lacks has seen releases of which the anchors beside it may know nothing either.
    anchors_tell = not _unknown_heads(home)
    names = {study.population for study in lost} | set(Population.objects.values_list("name", flat=True))
    names |= set(LedgerEntry.objects.values_list("population", flat=True).distinct())
    names |= {name for one in known for name in (*one.populations, *one.studies)}
    with ExitStack() as locks:
        for name in sorted(names):
            locks.enter_context(budget_lock(name))
        fork = _declare(site, by, reason, lost)
        for name in sorted(names):
            here = [study for study in lost if study.population == name]
            promised = [promise for one in known if (promise := one.populations.get(name))]
            may_go_on = _settle_promise(site, name, promised, here) and anchors_tell
            _settle_accounts(site, name, [one.of(name) for one in known], here, sure=sure, may_go_on=may_go_on)
        withdrawn.settle_the_list(site, known)
        _stop_studies(log_state.studies.keys() | names)
        ledger_log.settle_anchor(home)
        replace_durably(home.fork, fork.canonical())
        home.unknown_heads.unlink(missing_ok=True)
        for path in home.ledger_pending.glob("*.json"):
            path.unlink(missing_ok=True)  # what it named is in all three now
        require_one_story(home)


def _known_accounts(home: Home) -> tuple[ledger_log.LogState, ...]:
    """Return what the log says and, where it exists, what the anchor says."""
    anchor = ledger_log.anchored(home)
    return (ledger_log.tell(home),) if anchor is None else (ledger_log.tell(home), anchor)


def _declare(site: Site, by: tuple[str, str], reason: str, lost: Sequence[LostStudy]) -> Fork:
    continues = site.audit.public_head()
    heads = [str(head["hash"]) for head in _unknown_heads(site.home)]
    record = site.audit.append(
        RESTORED,
        continues=continues.hash,
        releases=continues.releases,
        standing=ledger_log.standing(site.home),
        lost=[study.study for study in lost][:128],
        heads=heads[:128],
        entered_by=by[0],
        confirmed_by=by[1],
        reason=reason,
    )
    goes_on = PublicHead.sign(site.identity, continues.releases, record.hash)
    return Fork.sign(site.identity, continues, goes_on)


def _settle_promise(site: Site, name: str, known: Sequence[Promise], lost: Sequence[LostStudy]) -> bool:
    """Settle caps, order, split and patient column; whether all patients are on the sides that they were on."""
    stored = stored_promise(site.home, name)
    everybody = [*known, stored] if stored is not None and stored.epsilon > 0 else [*known]
    if not everybody:
        return False
    first = everybody[0]
    columns = sorted({promise.identity for promise in everybody} - {""})
    same_split = stored is not None and {(p.fraction, p.split) for p in everybody} == {(stored.fraction, stored.split)}
    promise = Promise(
        epsilon=min(promise.epsilon for promise in everybody),
        delta=min(promise.delta for promise in everybody),
        order=first.order,
        # The key itself lies in the database alone. Where that is another one now, patients have changed sides.
        fraction=stored.fraction if stored is not None else first.fraction,
        split=stored.split if stored is not None else "",
        identity=columns[0] if columns else "",
        # A lost study may have been the first to name a column; then nothing says any more which one it was.
        both_sides=any(p.both_sides for p in everybody)
        or any(study.both_sides for study in lost)
        or len(columns) > 1
        or not same_split
        or bool(lost and not columns),
        accepted_delta=min(promise.accepted_delta for promise in everybody),
    )
    adopt(site, name, promise)
    return same_split


def _settle_accounts(
    site: Site,
    name: str,
    known: Sequence[balances.Accounts],
    lost: Sequence[LostStudy],
    *,
    sure: bool,
    may_go_on: bool,
) -> None:
    """Let log and database hold the larger loss of all that is known.

    sure: a study without a journal's anchor has released nothing. may_go_on: patients are on the sides that they had
    when open studies were approved, and the anchors say how far these came; else none of them may go on.
    """
    stored, logged = balances.of_database(name), ledger_log.tell(site.home).of(name)
    order = opened_order(name)
    # Of a population that came back without its split, patients of a lost study may be on either side.
    entered = {study.study: study.account(both_sides=order is None or study.both_sides) for study in lost}
    everything = stored
    for one in (logged, *known, entered):
        everything = balances.merged(everything, one, order or ANY_ORDER)
    for study, account in everything.items():
        settled = _with_all_that_may_have_left(site.home, study, account, sure=sure, may_go_on=may_go_on)
        pending.bring_up(site, name, study, settled, stored.get(study), logged.get(study))


def _with_all_that_may_have_left(
    home: Home, study_hash: str, account: StudyAccount, *, sure: bool, may_go_on: bool
) -> StudyAccount:
    """Return an open study's account, charged for each round its journal reached; in full where that is unknown."""
    if account.released or not account.reserved or account.is_in_full:
        return account
    if not may_go_on:
        return balances.in_full(account)
    reached = reached_round(home, study_hash)
    if reached is None:
        return account if sure else balances.in_full(account)
    return charged_up_to(home, study_hash, account, reached)


def reached_round(home: Home, study_hash: str) -> int | None:
    """Return the last round that the anchor of a study's journal knows; None where it is missing or damaged."""
    from datasites.secagg.journal import Anchor  # the secure sum, for whoever reads a journal's anchor

    try:
        return Anchor.parse((home.anchors / study_hash).read_bytes()).last_round
    except (FileNotFoundError, ValidationError, ValueError):
        return None


def charged_up_to(home: Home, study_hash: str, account: StudyAccount, reached: int) -> StudyAccount:
    """Return the account with all rounds up to `reached` charged, each as the study calls for it."""
    missing = [round for round in range(1, reached + 1) if round not in account.charged]
    if not missing:
        return account
    case = _case(home, study_hash)
    if case is None:
        return balances.in_full(account)  # what its rounds cost is not known any more
    planned = {round: balances.prices_of(case.planned(round)) for round in missing}
    return StudyAccount(account.reserved, {**account.charged, **planned}, account.released)


def charge_what_is_reached(site: Site, study_hash: str) -> None:
    """Charge all rounds that a study's journal reached, before its keys are given up; nothing where all were charged.

    Raises `DatasitesError` for a study that was charged in full: no round of it may run again.
    """
    for population, studies in ledger_log.tell(site.home).studies.items():
        if study_hash not in studies:
            continue
        with budget_lock(population):
            pending.finish(site, population)
            require_one_story(site.home, population)
            require_rounds_left(site.home, study_hash)
            account = ledger_log.tell(site.home).of(population)[study_hash]
            after = charged_up_to(site.home, study_hash, account, reached_round(site.home, study_hash) or 0)
            if after.is_in_full:
                raise DatasitesError(
                    f"study {study_hash[:12]}: its case can't be opened, so that nothing says what its rounds cost; "
                    "revoke it, and ask for a new submission"
                )
            for round in sorted(after.charged.keys() - account.charged.keys()):
                line = pending.Line(kind="charge", population=population, study=study_hash, round=round)
                pending.write(site, line, after.charged[round])


def require_rounds_left(home: Home, study_hash: str) -> None:
    """Raise `DatasitesError` for a study that was charged in full: no round of it may run here again."""
    if any(account.is_in_full for account in ledger_log.tell(home).accounts_of_study(study_hash)):
        raise DatasitesError(f"study {study_hash[:12]}: {balances.IN_FULL}")


def _case(home: Home, study_hash: str) -> OpenCase | None:
    row = Case.objects.filter(study_hash=study_hash).exclude(state=Case.State.REFUSED).first()
    if row is None:
        return None
    try:
        return open_case(home, row)
    except AuditError:
        raise
    except (DatasitesError, ValidationError):
        return None


def _planned_rounds(home: Home, study_hash: str) -> int:
    case = _case(home, study_hash)
    return 0 if case is None else case.study.rounds + 1


def _stop_studies(populations: Iterable[str]) -> None:
    """Stop what runs, close its rounds that have not left, and give each charged one that was lost a line of its own.

    What of them was released since the backup nothing here says, so none of them is tried again, nor sat out.
    """
    unknown = "after a restore nothing here says what of it was released"
    populations = set(populations)
    for row in Case.objects.filter(state__in=(*Case.ACTIVE, Case.State.STOPPED)):
        known = [one for name in populations if (one := balances.of_database(name).get(row.study_hash))]
        full = any(account.is_in_full for account in known)
        row.state = Case.State.STOPPED
        row.note = (
            balances.IN_FULL
            if full
            else "was restored from a backup; `datasites study rejoin` goes on with it in a new epoch"
        )
        row.save(update_fields=["state", "note"])
        Round.objects.filter(case=row, state__in=(Round.State.ACCEPTED, Round.State.CHARGED)).update(
            state=Round.State.FAILED, reason=unknown
        )
        for round in sorted({round for account in known for round in account.charged if round > 0}):
            Round.objects.get_or_create(
                case=row,
                round=round,
                defaults={
                    "epoch": 0,
                    "manifest_hash": "",
                    "state": Round.State.FAILED,
                    "reason": f"charged; {unknown}",
                },
            )
