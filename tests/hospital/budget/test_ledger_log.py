"""I17: database, audit log and anchor agree: what is changed in one is noticed, and refunds nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.audit.log import AuditLog
from datasites.hospital.budget import ledger, ledger_log, pending, population
from datasites.hospital.budget.reconcile import AccountsDiffer, differences, require_one_story
from datasites.hospital.config import DatasetSettings
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.models import BudgetFact, LedgerEntry, Population, Proposal
from datasites.hospital.proposals import two_people
from datasites.hospital.site import Site
from datasites.study import audit_chain
from datasites.study.audit_chain import AuditError, records
from datasites.study.errors import InputError
from tests.hospital.budget.accounts import ROUND, STUDY, WHOLE, Backup, restarted, spent
from tests.hospital.desk import Desk
from tests.kills import Killed


@pytest.fixture
def charged(site: Site, heart: DatasetSettings) -> Site:
    """A study that has charged three rounds."""
    ledger.reserve(site, heart, STUDY, WHOLE)
    for number in (1, 2, 3):
        ledger.charge(site, heart, STUDY, number, ROUND)
    return site


def noticed(site: Site, words: str) -> None:
    """By the running service at its next charge, by the start of one, and by `doctor`."""
    heart = site.home.dataset("heart")
    for act in (
        lambda: ledger.charge(site, heart, STUDY, 4, ROUND),
        lambda: ledger.reserve(site, heart, "b" * 64, ROUND),
        lambda: require_one_story(restarted(site).home),
    ):
        with pytest.raises(AccountsDiffer, match=words) as caught:
            act()
        assert "datasites budget restored" in str(caught.value)
    accounts = [check for check in doctor(site, ["accounts"]) if check.name == "accounts"]
    assert any(check.state == "bad" and "datasites budget restored" in check.message for check in accounts)


ROWS = "budget of population heart: study aaaaaaaaaaaa, {}: database and audit log differ"


@pytest.mark.parametrize("last", [1, 3])
def test_a_charge_that_is_deleted_is_noticed_and_still_counts(charged: Site, last: int) -> None:
    before = spent(charged)
    LedgerEntry.objects.filter(kind="charge", round=last).delete()
    assert spent(charged) == before
    noticed(charged, ROWS.format(f"round {last}"))


def test_all_charges_deleted(charged: Site) -> None:
    before = spent(charged)
    LedgerEntry.objects.filter(kind="charge").delete()
    assert spent(charged) == before
    noticed(charged, ROWS.format("round 1"))


def test_the_whole_ledger_deleted(charged: Site) -> None:
    before = ledger.state(charged.home.dataset("heart"))[0].committed
    LedgerEntry.objects.all().delete()
    assert ledger.state(charged.home.dataset("heart"))[0].committed == before
    noticed(charged, ROWS.format("its reservation"))


def test_charges_made_cheaper_are_noticed_and_the_dearer_one_counts(charged: Site) -> None:
    before = spent(charged)
    for entry in LedgerEntry.objects.filter(kind="charge"):
        entry.charges[0]["noise_multiplier"] *= 100
        entry.save()
    assert spent(charged) == before
    noticed(charged, ROWS.format("round 1"))


def test_a_reservation_that_is_said_to_have_ended(charged: Site) -> None:
    before = ledger.state(charged.home.dataset("heart"))[0].committed
    LedgerEntry.objects.create(population="heart", partition="training", study_hash=STUDY, kind="release")
    assert ledger.state(charged.home.dataset("heart"))[0].committed == before
    noticed(charged, ROWS.format("its end"))


def test_a_row_that_was_added(charged: Site) -> None:
    entry = LedgerEntry.objects.get(kind="charge", round=3)
    entry.pk, entry.round = None, 9
    entry.save()
    noticed(charged, ROWS.format("round 9"))


def test_the_wrong_name_of_a_population_refunds_nothing(charged: Site) -> None:
    LedgerEntry.objects.update(population="other")
    noticed(charged, "population heart: study aaaaaaaaaaaa, its reservation")


def widened() -> None:
    BudgetFact.objects.update(epsilon=400.0)


def delta_widened() -> None:
    BudgetFact.objects.update(delta=0.05)


def reordered() -> None:
    Population.objects.update(order=2)


def split_anew() -> None:
    Population.objects.update(split_key=b"k" * 32)


def told_apart_otherwise() -> None:
    Population.objects.update(identity="ssn")


def risk_accepted() -> None:
    BudgetFact.objects.create(population=Population.objects.get(name="heart"), what="delta_accepted", delta=0.01)


def forgotten() -> None:
    BudgetFact.objects.all().delete()
    Population.objects.all().delete()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (widened, "the database says epsilon 400"),
        (delta_widened, "the database says epsilon 4 at delta 0.05"),
        (reordered, "order of the filter"),
        (split_anew, "split into two sides"),
        (told_apart_otherwise, "column that identifies patients"),
        (risk_accepted, "accepts a delta of 0.01"),
        (forgotten, "the audit log knows its cap"),
    ],
)
def test_what_patients_were_promised_can_not_be_changed_in_the_database(
    charged: Site, edit: Callable[[], None], words: str
) -> None:
    edit()
    heart = charged.home.dataset("heart")
    state = ledger.state(heart.model_copy(update={"epsilon": 400.0, "delta": 0.05}))[0]
    assert (state.cap, state.delta) == (4.0, 1e-5)
    assert population.accepted_delta("heart") == 0.0
    noticed(charged, words)


def test_other_patients_are_not_said_in_the_database_alone(charged: Site) -> None:
    details = {"populations": ["heart", "stroke"]}
    Proposal.objects.create(kind="other_patients", subject="heart stroke", details=details, outcome="confirmed")
    assert population.other_patients("stroke") == frozenset()


# -- restores ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def backups(site: Site, heart: DatasetSettings, tmp_path: Path) -> tuple[Site, list[Backup]]:
    """A study of eight rounds, and a backup at each of ten points of it: before, after each round, after its end."""
    made = [Backup(site.home, tmp_path / "0")]
    ledger.reserve(site, heart, STUDY, WHOLE)
    for number in range(1, 9):
        ledger.charge(site, heart, STUDY, number, ROUND)
        made.append(Backup(site.home, tmp_path / str(number)))
    ledger.close(site, STUDY)
    made.append(Backup(site.home, tmp_path / "9"))
    return site, made


POINTS = range(10)


@pytest.mark.parametrize("point", POINTS)
def test_a_database_that_was_put_back(backups: tuple[Site, list[Backup]], point: int) -> None:
    site, made = backups
    before = spent(site)
    made[point].restore_database()
    assert spent(site) == before
    if point == 9:
        require_one_story(restarted(site).home)
    else:
        noticed(site, "study aaaaaaaaaaaa, ")


@pytest.mark.parametrize("point", POINTS)
def test_a_log_that_was_put_back(backups: tuple[Site, list[Backup]], point: int) -> None:
    site, made = backups
    before = spent(site)
    made[point].restore_log()
    if point == 9:
        require_one_story(restarted(site).home)
        return
    with pytest.raises(AuditError):
        ledger.reserve(site, site.home.dataset("heart"), "b" * 64, ROUND)
    site = restarted(site)
    assert spent(site) == before
    noticed(site, "was restored from a backup")


@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("point", POINTS)
def test_a_home_that_was_put_back(backups: tuple[Site, list[Backup]], point: int, anchors: bool) -> None:
    site, made = backups
    made[point].restore_database()
    made[point].restore_log()
    if not anchors:
        made[point].lose_anchors()
    site = restarted(site)
    if point == 9 and anchors:
        require_one_story(site.home)
    else:
        noticed(site, "was restored from a backup" if anchors else "is missing")


def test_nothing_but_two_people_makes_a_missing_anchor_good(
    desk: Desk,
) -> None:
    site = desk.site
    ledger.reserve(site, site.home.dataset("heart"), STUDY, WHOLE)
    shutil.rmtree(site.home.anchors)
    site = restarted(site)
    entered = two_people.propose_delta(site, desk.login("ann"), "heart", 0.01, "a small hospital")
    two_people.confirm(site, desk.login("bob"), entered.pk)
    pending.finish_all(site)
    noticed(restarted(site), "is missing")


def test_a_service_on_a_home_that_was_put_back_does_not_start(desk: Desk, tmp_path: Path) -> None:
    from datasites.hospital.service import Service

    backup = Backup(desk.site.home, tmp_path / "backup")
    ledger.reserve(desk.site, desk.site.home.dataset("heart"), STUDY, WHOLE)
    backup.restore_database()
    backup.restore_log()
    with pytest.raises(AccountsDiffer, match="datasites budget restored"):
        Service(restarted(desk.site))


# -- kills -------------------------------------------------------------------------------------------------------------


#: A step of writing one line, and whether the line counts after a kill right before it, or right after it.
STEPS = {
    "replace_durably": (False, False),
    "_log": (False, True),
    "ledger_log.write_anchor": (True, True),
    "_store": (True, True),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("line", ["reserve", "charge", "release"])
def test_killed_at_any_step_a_line_counts_or_was_never_acted_on(
    site: Site, heart: DatasetSettings, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, line: str
) -> None:
    acts: dict[str, Callable[[Site], None]] = {
        "reserve": lambda site: ledger.reserve(site, heart, STUDY, WHOLE),
        "charge": lambda site: ledger.charge(site, heart, STUDY, 1, ROUND),
        "release": lambda site: ledger.close(site, STUDY),
    }
    for earlier in list(acts)[: list(acts).index(line)]:
        acts[earlier](site)
    before = ledger.accounts_of("heart")
    acted = getattr(pending, step) if "." not in step else ledger_log.write_anchor

    def killed(*arguments: Any, **fields: Any) -> None:
        if after:
            acted(*arguments, **fields)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"datasites.hospital.budget.pending.{step}", killed)
        with pytest.raises(Killed):
            acts[line](site)
    site = restarted(site)
    pending.finish_all(site)
    require_one_story(site.home)
    counts = STEPS[step][after]
    assert (ledger.accounts_of("heart") != before) == counts
    assert not list(site.home.ledger_pending.glob("*.json"))
    acts[line](site)
    kind = {"reserve": "reserved", "charge": "charged", "release": "reservation_released"}[line]
    assert [r.kind for r in records(site.home.audit)].count(kind) == 1, "the retry is the same line"
    require_one_story(restarted(site).home)
    assert ledger.accounts_of("heart")[STUDY] == ledger_log.tell(site.home).of("heart")[STUDY]


def test_killed_before_the_commit_of_an_approval_the_reservation_counts_and_the_second_approval_is_the_same(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    desk.approve("ann")
    append = AuditLog.append

    def killed(log: AuditLog, kind: str, /, **fields: Any) -> Any:
        if kind == "approved":
            raise Killed
        return append(log, kind, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append", killed)
        with pytest.raises(Killed):
            desk.approve("bob")
    assert not LedgerEntry.objects.exists()
    heart = desk.site.home.dataset("heart")
    assert ledger.state(heart)[0].committed > 0
    desk.approve("bob")
    require_one_story(restarted(desk.site).home)
    assert [r.kind for r in records(desk.site.home.audit)].count("reserved") == 1


# -- following the log -------------------------------------------------------------------------------------------------


def test_a_charge_reads_what_was_appended_and_no_more(
    charged: Site, heart: DatasetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        charged.audit.append("note", number=number)
    ledger_log.tell(charged.home)
    read: list[int] = []
    read_record = audit_chain.read_record
    monkeypatch.setattr(audit_chain, "read_record", lambda *a: read.append(1) or read_record(*a))
    ledger.charge(charged, heart, STUDY, 4, ROUND)
    assert len(read) <= 20, "what is new, and each time the record before it"
    read.clear()
    ledger_log.forget(charged.home)
    assert ledger_log.tell(charged.home).of("heart")[STUDY].charged.keys() == {1, 2, 3, 4}
    assert len(read) <= 20, "a new process goes on from the anchor"


def test_the_anchor_holds_what_the_log_says(charged: Site) -> None:
    told = ledger_log.tell(charged.home)
    assert ledger_log.anchored(charged.home) == told
    charged.home.ledger_anchor.unlink()
    ledger_log.forget(charged.home)
    assert ledger_log.tell(charged.home) == told
    assert ledger_log.standing(charged.home) == "missing"
    assert charged.home.ledger_anchor.parent == charged.home.anchors


def test_charges_of_an_older_version_are_not_in_the_log_in_full_and_that_is_said(
    site: Site, heart: DatasetSettings
) -> None:
    """A home of the older format does not start: its spending counts, and two people take it over."""
    price = ledger.StoredPrice.of(WHOLE["training"])
    LedgerEntry.objects.create(
        population="heart", partition="training", study_hash=STUDY, kind="reserve", charges=json.loads(price.charges)
    )
    site.audit.append("charged", study=STUDY, round=1, manifest="", digest="ab" * 32)
    assert ledger.state(heart)[0].committed > 0
    noticed(site, "of an older version: study aaaaaaaaaaaa was")
    assert len(list(differences(site.home))) == 1


@pytest.mark.parametrize("at", ["the database", "the log", "the end"])
@pytest.mark.parametrize("kind", ["budget_widened", "delta_accepted"])
def test_what_widens_is_logged_when_nothing_refuses_it_and_counts_when_all_know_it(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    at: str,
) -> None:
    """Killed while it is confirmed, it does not count yet, and is confirmed again."""
    before, append = population.agreed_caps("heart"), AuditLog.append
    assert before is not None
    wider = replace(before, epsilon=before.epsilon + 1)
    if kind == "budget_widened":
        monkeypatch.setattr(population, "asked_caps", lambda _: wider)
        entered = two_people.propose_widening(desk.site, desk.login("ann"), "heart", "more to learn")
    else:
        entered = two_people.propose_delta(desk.site, desk.login("ann"), "heart", 0.01, "a small hospital")

    def killed(*_: object) -> None:
        raise Killed

    def killed_at(log: AuditLog, what: str, /, **fields: Any) -> Any:
        if what == ("proposal_confirmed" if at == "the end" else kind):
            raise Killed
        return append(log, what, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(*((population, "_record", killed) if at == "the database" else (AuditLog, "append", killed_at)))
        with pytest.raises(Killed):
            two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    assert desk.site.audit.holds(kind) == (at == "the end")
    site = restarted(desk.site)
    require_one_story(site.home)
    assert (population.agreed_caps("heart"), population.accepted_delta("heart")) == (before, 0.0)
    two_people.confirm(site, desk.login("bob"), entered.pk)
    if kind == "budget_widened":
        assert population.agreed_caps("heart") == wider
    else:
        assert population.accepted_delta("heart") == 0.01
    require_one_story(site.home)


def test_a_larger_delta_for_a_budget_that_is_not_open_is_refused_and_not_logged(desk: Desk) -> None:
    entered = two_people.propose_delta(desk.site, desk.login("ann"), "heart", 0.01, "a small hospital")
    Population.objects.filter(name="heart").update(name="another")
    with pytest.raises(InputError, match="its budget is not open yet"):
        two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    assert not desk.site.audit.holds("delta_accepted")
    assert Proposal.objects.get(pk=entered.pk).outcome == ""
