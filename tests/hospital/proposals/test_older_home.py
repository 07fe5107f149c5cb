"""I17: a home of an older version, whose log holds no amounts, doesn't start: its spending never begins at zero."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from datasites.hospital.audit.log import head_file
from datasites.hospital.budget import ledger, ledger_log, pending
from datasites.hospital.budget.ledger import BudgetExceeded
from datasites.hospital.budget.ledger_log import LogState
from datasites.hospital.budget.population import open_populations
from datasites.hospital.budget.reconcile import AccountsDiffer, differences, require_one_story
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.models import BudgetFact, LedgerEntry, Population
from datasites.hospital.proposals import two_people
from datasites.hospital.proposals.restored import LostStudy
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.study.errors import InputError
from tests.hospital.budget.accounts import ROUND, STUDY, WHOLE, restarted
from tests.hospital.desk import Desk

OTHER = "c" * 64
REFUSED = (
    "this home is of an older version: study aaaaaaaaaaaa was reserved or charged before amounts stood in the log, so "
    "that it doesn't show what their patients have lost; keep this home with the version that wrote it, or have "
    "two people enter what those studies cost"
)
#: What the study cost, as two people enter it: more than any of its rounds.
COST = LostStudy(
    study=STUDY, population="heart", noise_multiplier=4.0, sampling_rate=0.3, steps=75, evaluation_multiplier=100.0
)


def reserved_and_charged(site: Site) -> None:
    """As some versions logged it."""
    site.audit.append("reserved", study=STUDY, dataset="heart")
    charged_alone(site)


def charged_alone(site: Site) -> None:
    """As other versions logged it."""
    site.audit.append("initialised", email=site.identity.email, fingerprint="ab" * 32)
    for number in (1, 2, 3):
        site.audit.append("charged", study=STUDY, round=number, manifest="cd" * 32)
        site.audit.append("released", study=STUDY, round=number, audit="ef" * 32)


def reserved_alone(site: Site) -> None:
    """Nothing was charged, and it may still be."""
    site.audit.append("reserved", study=STUDY, dataset="heart")


def rows(kinds: tuple[str, ...] = ("reserve", "charge")) -> None:
    """The lines of such a home's database, under the name that the migration gave them."""
    for kind, numbers, asked in (("reserve", (0,), WHOLE), ("charge", (1, 2, 3), ROUND)):
        price = ledger.StoredPrice.of(asked["training"])
        for number in numbers if kind in kinds else ():
            LedgerEntry.objects.create(
                population="heart",
                partition="training",
                study_hash=STUDY,
                kind=kind,
                round=number,
                charges=json.loads(price.charges),
                local_charges=json.loads(price.local),
            )


@pytest.fixture
def older(desk: Desk) -> Site:
    """A home whose budget no log has opened yet, as before budgets stood in it; its log is empty still."""
    home = desk.site.home
    BudgetFact.objects.all().delete()
    Population.objects.all().delete()
    for path in (home.audit, head_file(home.audit), home.unknown_heads):
        path.unlink(missing_ok=True)
    for folder in (home.anchors, home.ledger_pending):
        shutil.rmtree(folder, ignore_errors=True)
    return restarted(desk.site)


def refused(site: Site) -> None:
    """At each start, before and after something has read the log; by the gate; and by `doctor`, in one sentence."""
    for _ in range(2):
        site = restarted(site)
        with pytest.raises(AccountsDiffer, match=REFUSED):
            Service(site)
    assert not ledger_log.tell(site.home).populations, "no budget was opened"
    heart = site.home.dataset("heart")
    for gate in (
        lambda: ledger.charge(site, heart, STUDY, 4, ROUND),
        lambda: ledger.reserve(site, heart, OTHER, ROUND),
        lambda: require_one_story(site.home, "another population"),
    ):
        with pytest.raises(AccountsDiffer, match=REFUSED):
            gate()
    assert [check.message for check in doctor(site, ["accounts"]) if check.name == "accounts"] == list(
        differences(site.home)
    )
    assert len(list(differences(site.home))) == 1


LOGS = [reserved_and_charged, charged_alone, reserved_alone]


@pytest.mark.parametrize("log", LOGS)
def test_without_rows_in_the_database(older: Site, log: Callable[[Site], None]) -> None:
    """Nothing says what was spent, and that is not zero."""
    log(older)
    refused(older)


@pytest.mark.parametrize("log", LOGS)
def test_with_rows_in_the_database(older: Site, log: Callable[[Site], None]) -> None:
    log(older)
    rows()
    refused(older)


def test_rows_of_a_study_that_no_log_names(older: Site) -> None:
    """It was approved in a version that logged no reservations, and had not run yet."""
    older.audit.append("initialised", email=older.identity.email, fingerprint="ab" * 32)
    rows(("reserve",))
    site = restarted(older)
    with pytest.raises(AccountsDiffer, match="is missing"):
        Service(site)  # it may as well be a home that has lost its log
    assert any(REFUSED in words for words in differences(site.home))


def test_a_home_in_which_nothing_was_ever_charged_starts(older: Site) -> None:
    older.audit.append("initialised", email=older.identity.email, fingerprint="ab" * 32)
    pending.finish_all(older)
    require_one_story(older.home)
    open_populations(older)
    assert not list(differences(restarted(older).home))


def test_records_of_an_older_version_in_a_budget_that_is_open_now(site: Site) -> None:
    """Such a log was written by an older version again, after this one."""
    site.audit.append("charged", study=STUDY, round=1, manifest="cd" * 32)
    for opened in (site, restarted(site)):
        with pytest.raises(AccountsDiffer, match=REFUSED):
            require_one_story(opened.home)


def test_the_anchor_remembers_lines_without_amounts(older: Site) -> None:
    charged_alone(older)
    ledger_log.settle_anchor(older.home)
    told = ledger_log.tell(older.home)
    assert told.older == {(STUDY, 1), (STUDY, 2), (STUDY, 3)}
    assert ledger_log.anchored(older.home) == told
    assert told.unpriced() == [STUDY]
    assert LogState().unpriced() == []


def test_many_studies_are_named_in_one_sentence(older: Site) -> None:
    for number in range(25):
        older.audit.append("charged", study=f"{number:02x}" * 32, round=1, manifest="cd" * 32)
    (words,) = differences(older.home)
    assert "studies 000000000000, 010101010101, " in words
    assert "131313131313 and 5 more were reserved or charged" in words


# -- taking it over ----------------------------------------------------------------------------------------------------


def taken_over(desk: Desk, site: Site, *lost: LostStudy) -> Site:
    entered = two_people.propose_restored(site, desk.login("ann"), lost, "from the minutes of the reviews")
    two_people.confirm(site, desk.login("bob"), entered.pk)
    after = restarted(site)
    pending.finish_all(after)
    require_one_story(after.home)
    open_populations(after)
    require_one_story(after.home)
    assert [check.state for check in doctor(after, ["accounts"]) if check.name == "accounts"] == ["ok"]
    return after


@pytest.mark.parametrize("log", LOGS)
def test_two_people_enter_what_a_study_cost_that_the_database_has_lost(
    desk: Desk,
    older: Site,
    log: Callable[[Site], None],
) -> None:
    log(older)
    with pytest.raises(InputError, match=f"study {STUDY}: an older version charged it"):
        two_people.propose_restored(older, desk.login("ann"), (), "nothing is known of it")
    after = taken_over(desk, older, COST)
    heart = after.home.dataset("heart")
    # On which side its patients were is not known any more.
    for state in ledger.state(heart):
        assert state.spent > 2
    with pytest.raises(BudgetExceeded):
        ledger.reserve(after, heart, OTHER, {"training": WHOLE["training"], "held_out": WHOLE["training"]})


def test_what_the_database_still_says_need_not_be_entered(desk: Desk, older: Site) -> None:
    """The study was open: nothing shows how far it came, so it counts in full."""
    charged_alone(older)
    rows()
    after = taken_over(desk, older)
    heart = after.home.dataset("heart")
    training = ledger.state(heart)[0]
    assert training.spent == training.committed > 2
    with pytest.raises(BudgetExceeded, match="charged in full"):
        ledger.charge(after, heart, STUDY, 4, ROUND)


def test_rounds_that_the_database_lacks_are_asked_for(desk: Desk, older: Site) -> None:
    charged_alone(older)
    rows(("reserve",))
    with pytest.raises(InputError, match=f"study {STUDY}: an older version charged it"):
        two_people.propose_restored(older, desk.login("ann"), (), "nothing is known of it")
    assert ledger.state(taken_over(desk, older, COST).home.dataset("heart"))[0].spent > 2
