"""The privacy ledger: what each population of patients may lose, has reserved, and has lost.

A population has two disjoint partitions of patients, `training` and `held_out`; each composes its own events over all
studies on all datasets of the population, and a patient's loss is that of the one partition that the patient is in
(parallel composition over a split that depends on the patient's identity alone).

Gate: before a reservation or a charge is written, the composition of everything committed plus the new event must stay
within the population's (epsilon, delta) by the Rényi filter at one order (theorem in `privacy.renyi`). A charge is part
of what its study reserved: its events are among those reserved. Check and write happen in one transaction, and only one
at a time runs on a population. No decision reads a clock. The cap is the guarantee. What is "spent" or "committed" at
some moment is a reading of the same arithmetic.

**A budget can't be exceeded.** Claim: whatever is released on a population's patients was charged before, and all
charges ever made satisfy the gate above: under crash, kill and retry at any moment, restart, threads and processes at
once, a clock that is set back, a restore of database, audit log or both from any moment in the past, a rename of
datasets, an edit of `datasite.toml`, and any edit of the database alone.

Proof. Every reservation and every charge is kept in full in three places: a record of the audit log, a row of the
database, and the ledger's anchor, which is kept out of backups. (1) Order: log, anchor, then database, then training,
then release. So whenever a release exists, its charge is in all three, and a process that is killed leaves at most a
line in the log that the database lacks, never the other way round. The line is named in a file beforehand (`pending`),
and the next writer puts it into the database: it counts, although possibly nothing was released under it. (2) A retry
finds the line and writes nothing; a round is charged once, and the journal releases it once. (3) Gate and write hold
one lock per population, across processes too. (4) The gate reads the whole database and log, and takes the larger
amount of every line at the filter's own order, at which losses add up, so that its sum is no less than either's. It
raises `AccountsDiffer` if they differ in any way other than by (1), or if the log is not the one that the anchor knows;
so does the start of the service. A row that was deleted, added or edited, a database or a log that was put back, and a
home that was restored whole without its anchors each make a difference, and nothing is reserved or charged until two
people have settled it (`restored`), which keeps the larger loss of all that is known and charges in full what may have
been released unseen: an open study whose rounds no anchor knows any more, and studies that these people enter. No
anchor is overwritten while there is a difference, and a home counts as new only while database, log and journals know
of no budget other than those that are being opened (`openings`), so that starting the service, however often, hides no
difference. Rounds that had not left are closed by the settlement, no round of a study that was charged in full runs
again, charged before or not, and a study with a round that anybody knows gets no new journal: so nothing leaves twice
under one charge. A mechanism's divergence is a stored figure of the accountant (`price_cache`), bound as strongly as
the lines are. (5) Lines name the population, not a dataset; caps, order, split key and patient column are lines of the
same log, so the database can't widen them, and `datasite.toml` can only narrow. (6) Lines of an older version have no
amounts in the log; while a study has such lines and no others, nothing is reserved or charged, so that no spending
starts again at zero.

Assumptions: the anchors survive a restore or are missing after it (they are kept out of backups, as the guide says),
and nobody forges one; the audit log is not rewritten with the hospital's key; the disk keeps what it acknowledged;
patients keep their pseudonyms; where the anchors are missing, two people enter every study that was approved after the
backup (contradicted only where a head of the log that others hold counts more releases than these studies and the open
ones can have made, or an anchor of a journal shows another one); not all is gone together, since a home whose database,
log and anchors come back from before its first budget was opened is a new one; and whoever edits the tables of people
and of what waits for them can act as two people, under names that the log keeps.

If *everything* is put back together, anchors included, as by a snapshot of the whole machine, nothing in this home can
know: heads of the log that other parties hold show it, once somebody compares them with the log (`datasites audit
held`). By itself a researcher's software refuses only a vector whose head counts no more releases than the last one
that it accepted; releases of other studies since the snapshot can make up for that. Until somebody compares, what was
charged after the snapshot is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from datasites.hospital.budget import balances, ledger_log, pending
from datasites.hospital.budget.balances import PARTITIONS, PrivacyCost, StoredPrice, StudyAccount
from datasites.hospital.budget.pending import StudyCap
from datasites.hospital.budget.population import Caps, caps_of, opened_order, order_of, require_agreed
from datasites.hospital.budget.price_cache import kept_prices
from datasites.hospital.budget.promises import budget_lock
from datasites.hospital.budget.reconcile import AccountsDiffer, require_one_story
from datasites.hospital.config import DatasetSettings
from datasites.hospital.database import this_home
from datasites.hospital.models import LedgerEntry
from datasites.hospital.site import Site
from datasites.privacy.events import Event, in_order, is_part_of
from datasites.privacy.pricing import Prices
from datasites.study.errors import DatasitesError

__all__ = ["PARTITIONS", "PrivacyCost", "BudgetExceeded", "PartitionState"]

#: To compare the lines of a budget that was never opened; nothing is gated on it.
ANY_ORDER = 8
#: Room for floating-point noise when the same events are composed in another order.
TOLERANCE = 1e-9


class BudgetExceeded(DatasitesError):
    """An event does not fit the population's budget or the study's reservation; nothing was written."""


@dataclass(frozen=True)
class PartitionState:
    """Readings of one partition's filter, at its order and the population's delta. `committed`: spent and reserved."""

    partition: str
    cap: float
    delta: float
    order: int
    spent: float
    spent_local: float
    committed: float
    used: float

    @property
    def free(self) -> float:
        """What the cap leaves above everything committed."""
        return max(0.0, self.cap - self.committed)

    @property
    def percent_used(self) -> float:
        """`used`, the part of the cap that is spent or reserved, in percent."""
        return 100 * self.used


def accounts_of(population: str) -> dict[str, StudyAccount]:
    """Return all studies of a population: the larger loss of database and audit log, line by line."""
    logged = ledger_log.tell(this_home()).of(population)
    return balances.merged(balances.of_database(population), logged, opened_order(population) or ANY_ORDER)


@dataclass(frozen=True)
class Measure:
    """How a population's events are measured: its caps and the Renyi order of its budget, read once."""

    caps: Caps
    order: int
    prices: Prices

    @classmethod
    def of(cls, dataset: DatasetSettings, prices: Prices | None = None) -> Measure:
        """Return the measure of a dataset's population now; prices: those that are kept, unless given."""
        return cls(caps_of(dataset), order_of(dataset), prices or kept_prices())

    def epsilon(self, events: Sequence[Event]) -> float:
        """Return the epsilon of these events, at the population's delta."""
        return self.prices.at_order(events, self.order, self.caps.delta)

    def share(self, events: Sequence[Event]) -> float:
        """Say which part of the population's cap they take."""
        return self.prices.share(events, self.caps.epsilon, self.caps.delta, self.order)

    def require_room(self, partition: str, events: Sequence[Event], what: str) -> None:
        """Raise `BudgetExceeded` unless all these events fit."""
        after, caps = self.epsilon(events), self.caps
        if not after <= caps.epsilon + TOLERANCE:
            raise BudgetExceeded(
                f"budget: population {caps.population}, {partition} patients: {what} would bring epsilon to "
                f"{after:.3f} at delta {caps.delta:g} (Renyi order {self.order}), above the cap of {caps.epsilon:g}; "
                "ask for fewer rounds or more noise: what these patients may lose does not grow with time or with "
                "another name"
            )


def _others(known: balances.Accounts, study_hash: str) -> list[StudyAccount]:
    return [account for name, account in known.items() if name != study_hash]


@dataclass(frozen=True)
class Reading:
    """A population's ledger at one moment: what its studies committed, and how that is measured. Decides nothing."""

    known: Mapping[str, StudyAccount]
    budget: Measure

    @classmethod
    def of(cls, dataset: DatasetSettings, prices: Prices | None = None) -> Reading:
        """Read the ledger of a dataset's population now; prices: those that are kept, unless given."""
        return cls(accounts_of(dataset.population), Measure.of(dataset, prices))

    def account(self, study_hash: str) -> StudyAccount:
        """Return what one study has reserved and charged."""
        return self.known.get(study_hash) or StudyAccount()

    def elsewhere(self, study_hash: str) -> dict[str, float]:
        """Return the epsilon that all studies but this one have reserved or charged, per partition."""
        others = _others(self.known, study_hash)
        return {partition: self.budget.epsilon(balances.committed(others, partition)) for partition in PARTITIONS}

    def after(self, asked: Mapping[str, PrivacyCost], study_hash: str = "") -> dict[str, float]:
        """Return the epsilon of each partition if `study` reserved `asked` on top of everything committed."""
        others = _others(self.known, study_hash)
        return {
            partition: self.budget.epsilon([*balances.committed(others, partition), price.event])
            for partition, price in asked.items()
        }

    def state(self) -> tuple[PartitionState, ...]:
        """Return spent and committed per partition, as they read."""
        budget, known = self.budget, self.known.values()
        return tuple(
            PartitionState(
                partition=partition,
                cap=budget.caps.epsilon,
                delta=budget.caps.delta,
                order=budget.order,
                spent=budget.epsilon([event for one in known for event in one.charged_events(partition)]),
                spent_local=budget.epsilon(
                    [event for one in known for event in one.charged_events(partition, local=True)]
                ),
                committed=budget.epsilon(balances.committed(known, partition)),
                used=budget.share(balances.committed(known, partition)),
            )
            for partition in PARTITIONS
        )

    def charged(self, study_hash: str, delta: float) -> dict[str, dict[str, float]]:
        """Return what one study has charged, at the study's delta: {partition: {"pld": epsilon, "local": epsilon}}.

        "pld" is the figure that the study's own cap bounds; "local" is against one who sees this hospital's own
        vectors. They differ in distributed mode only, where the latter rests on the hospital's own noise and is priced
        by the best Renyi order: that noise is discrete and coarse, which PLD of continuous noise doesn't bound.
        """
        figures, account, prices = {}, self.account(study_hash), self.budget.prices
        for partition in PARTITIONS:
            events, local = account.charged_events(partition), account.charged_events(partition, local=True)
            pld = prices.pld(events, delta)
            local_epsilon = pld if in_order(local) == in_order(events) else prices.rdp(local, delta)
            figures[partition] = {"pld": pld, "local": local_epsilon}
        return figures


def state(dataset: DatasetSettings) -> tuple[PartitionState, ...]:
    """Return spent and committed per partition, as they read now."""
    return Reading.of(dataset).state()


def study_charged(dataset: DatasetSettings, study_hash: str, delta: float) -> dict[str, dict[str, float]]:
    """Return `Reading.charged`, as it reads now."""
    return Reading.of(dataset).charged(study_hash, delta)


def study_account(dataset: DatasetSettings, study_hash: str) -> StudyAccount:
    """Return what one study has reserved and charged, now."""
    return accounts_of(dataset.population).get(study_hash) or StudyAccount()


def reserve(
    site: Site,
    dataset: DatasetSettings,
    study_hash: str,
    asked: Mapping[str, PrivacyCost],
    *,
    cap: StudyCap | None = None,
) -> None:
    """Reserve a study's whole privacy loss per partition, or raise `BudgetExceeded` and write nothing.

    cap: the study's own, which the log records with the reservation, so that evidence can be checked against it.
    A study reserves once; reserving again is an error, since it would hide a change of terms. The same reservation
    again is the same one: an approval that was killed half-way has left it.
    """
    population, prices = dataset.population, balances.prices_of(asked)
    with budget_lock(population):
        pending.finish(site, population)
        require_agreed(dataset)
        require_one_story(site.home, population)
        known = accounts_of(population)
        if study_hash in known:
            if known[study_hash] == StudyAccount(reserved=prices):
                return
            raise BudgetExceeded(
                f"budget: study {study_hash[:12]} has reserved before; submit changed terms as a new study"
            )
        budget = Measure.of(dataset)
        for partition, price in asked.items():
            events = [*balances.committed(known.values(), partition), price.event]
            budget.require_room(partition, events, f"study {study_hash[:12]}")
        pending.write(site, pending.Line(kind="reserve", population=population, study=study_hash), prices, cap=cap)


def charge(
    site: Site,
    dataset: DatasetSettings,
    study_hash: str,
    round: int,
    asked: Mapping[str, PrivacyCost],
    manifest: str = "",
) -> None:
    """Charge `round` (>= 1) before it runs, or raise `BudgetExceeded` and write nothing.

    Charging the same round again with the same events is the same charge: a round releases at most once, so a crash
    between charge and release may repeat the work under it. Other events for that round are an error.
    """
    population, prices = dataset.population, balances.prices_of(asked)
    with budget_lock(population):
        pending.finish(site, population)
        require_agreed(dataset)
        require_one_story(site.home, population)
        known = accounts_of(population)
        account = known.get(study_hash) or StudyAccount()
        # Before all else: of rounds that were charged, too, nothing says whether they were released.
        if account.is_in_full:
            raise BudgetExceeded(f"budget: study {study_hash[:12]}: {balances.IN_FULL}")
        if round in account.charged:
            if account.charged[round] != prices:
                raise BudgetExceeded(f"budget: round {round} of study {study_hash[:12]} was charged with another event")
            return
        if account.released:
            raise BudgetExceeded(f"budget: study {study_hash[:12]} is closed; it can charge nothing more")
        others, budget = _others(known, study_hash), Measure.of(dataset)
        for partition, price in asked.items():
            charged = [*account.charged_events(partition), price.event]
            if not is_part_of(charged, account.reserved_events(partition)):
                raise BudgetExceeded(
                    f"budget: round {round} of study {study_hash[:12]} goes beyond what was reserved at approval for "
                    f"{partition} patients; a study can't run more rounds or steps than were approved"
                )
            budget.require_room(partition, [*balances.committed(others, partition), *charged], f"round {round}")
        line = pending.Line(kind="charge", population=population, study=study_hash, round=round)
        pending.write(site, line, prices, manifest=manifest)


def round_entry(dataset: DatasetSettings, study_hash: str, round: int) -> dict[str, object]:
    """Return what the ledger holds of one charged round, as plain data, and as the audit log has it."""
    return pending.round_entry(dataset.population, round, study_account(dataset, study_hash).charged.get(round, {}))


def charged_rounds(dataset: DatasetSettings, study_hash: str) -> set[int]:
    """Return the rounds that a study has charged."""
    return set(study_account(dataset, study_hash).charged)


def is_charged(account: StudyAccount, round: int, asked: Mapping[str, PrivacyCost]) -> bool:
    """Say whether a study has charged `round` with exactly `asked`."""
    charged = account.charged.get(round, {})
    # What is gated on: of the price against one who sees the vectors, nothing depends on it.
    return {partition: price.charges for partition, price in charged.items()} == {
        partition: StoredPrice.of(price).charges for partition, price in asked.items()
    }


def close(site: Site, study_hash: str) -> None:
    """Release what a study reserved and did not charge; its charges stay for ever. Idempotent."""
    log_state = ledger_log.tell(site.home)
    stored = LedgerEntry.objects.filter(study_hash=study_hash).values_list("population", flat=True).distinct()
    for population in sorted({*stored, *(name for name in log_state.studies if study_hash in log_state.of(name))}):
        with budget_lock(population):
            pending.finish(site, population)
            account = accounts_of(population).get(study_hash)
            if account is not None and account.reserved and not account.released:
                require_one_story(site.home, population)
                pending.write(
                    site, pending.Line(kind="release", population=population, study=study_hash), account.reserved
                )


def release_what_is_left(site: Site, study_hash: str) -> None:
    """Release what an ended study reserved and did not charge, if that is still to be done.

    Whoever ended it does so, or the service where that was interrupted; while accounts differ it stays reserved, until
    two people have settled that.
    """
    accounts = ledger_log.tell(site.home).accounts_of_study(study_hash)
    if any(account.reserved and not account.released for account in accounts):
        with suppress(AccountsDiffer):
            close(site, study_hash)
