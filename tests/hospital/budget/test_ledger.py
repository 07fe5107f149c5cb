"""I5: charge before release, nothing refunded, and no crash, race, restart or clock passes the cap."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from datasites.hospital.budget import ledger, pending
from datasites.hospital.budget.balances import StoredPrice
from datasites.hospital.budget.ledger import BudgetExceeded, PrivacyCost
from datasites.hospital.budget.population import Caps, open_populations, widen
from datasites.hospital.budget.reconcile import require_one_story
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.site import Site
from datasites.privacy.accountant import epsilon_at_order, epsilon_pld, epsilon_rdp
from datasites.privacy.events import Event, release
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.renyi import filter_order

PLAN = PrivacyPlan(clip=1.0, noise_multiplier=4.0, sampling_rate=0.3, rounds=15, steps_per_round=5)


def whole(plan: PrivacyPlan = PLAN) -> dict[str, PrivacyCost]:
    return {"training": PrivacyCost(plan.event(), plan.local_event())}


def one_round(plan: PrivacyPlan = PLAN) -> dict[str, PrivacyCost]:
    return {"training": PrivacyCost(plan.round_event(), plan.round_event())}


def at_order(events: list[Event]) -> float:
    return epsilon_at_order(events, 6, 1e-5)


def spent(heart: DatasetSettings) -> float:
    return ledger.state(heart)[0].spent


def test_rounds_compose_to_what_was_reserved_and_no_round_more(site: Site, heart: DatasetSettings) -> None:
    ledger.reserve(site, heart, "a" * 64, whole())
    for number in range(1, 16):
        ledger.charge(site, heart, "a" * 64, number, one_round())
    assert spent(heart) == pytest.approx(at_order([PLAN.event()]))
    with pytest.raises(BudgetExceeded, match="beyond what was reserved"):
        ledger.charge(site, heart, "a" * 64, 16, one_round())
    assert spent(heart) == pytest.approx(at_order([PLAN.event()]))


def test_a_round_is_charged_once_and_with_one_event(site: Site, heart: DatasetSettings) -> None:
    ledger.reserve(site, heart, "a" * 64, whole())
    ledger.charge(site, heart, "a" * 64, 1, one_round())
    before = spent(heart)
    ledger.charge(site, heart, "a" * 64, 1, one_round())
    assert spent(heart) == before
    other = PLAN.model_copy(update={"steps_per_round": 1})
    with pytest.raises(BudgetExceeded, match="another event"):
        ledger.charge(site, heart, "a" * 64, 1, one_round(other))


def test_a_charge_is_part_of_what_was_reserved_however_cheap_it_is(site: Site, heart: DatasetSettings) -> None:
    """Events are compared and not their price: a cheaper mechanism than the approved one is still another one."""
    ledger.reserve(site, heart, "a" * 64, whole())
    for other in (release(1e6), PLAN.model_copy(update={"noise_multiplier": 4.1}).round_event()):
        with pytest.raises(BudgetExceeded, match="beyond what was reserved"):
            ledger.charge(site, heart, "a" * 64, 1, {"training": PrivacyCost(other, other)})
    with pytest.raises(BudgetExceeded, match="beyond what was reserved"):
        ledger.charge(site, heart, "a" * 64, 1, {"held_out": PrivacyCost(PLAN.round_event(), PLAN.round_event())})
    assert spent(heart) == 0


def test_the_cap_is_kept_at_the_one_order_that_its_budget_was_opened_at(site: Site, heart: DatasetSettings) -> None:
    """Cap 4 at delta 1e-5 is order 6: 4 + log(6 / 5) + log(6e-5) / 5, so a divergence of 2.2381 and no more."""
    assert ledger.order_of(heart) == 6
    most = math.sqrt(3 / 2.238088)
    for noise, fits in ((most * 1.0001, True), (most * 0.9999, False)):
        event = release(noise)
        assert (ledger.Reading.of(heart).after({"training": PrivacyCost(event, event)})["training"] <= 4) is fits
    with pytest.raises(BudgetExceeded, match="above the cap of 4"):
        ledger.reserve(site, heart, "a" * 64, {"training": PrivacyCost(event, event)})
    # By the best of all orders this one costs less than 4, and much more at the order of this budget.
    dear = release(0.6, 0.001, 50)
    assert epsilon_pld([dear], 1e-5) < epsilon_rdp([dear], 1e-5) < 3 < 9 < at_order([dear])
    with pytest.raises(BudgetExceeded, match="Renyi order 6"):
        ledger.reserve(site, heart, "a" * 64, {"training": PrivacyCost(dear, dear)})


def test_a_budget_keeps_the_order_that_it_was_opened_at(site: Site, heart: DatasetSettings) -> None:
    """The best order of a wider or narrower cap is another one, and to change to it would follow the releases."""
    from datasites.hospital.models import Population

    assert Population.objects.get(name="heart").order == filter_order(4.0, 1e-5) == 6
    ledger.reserve(site, heart, "a" * 64, whole())
    widen(site, "heart", Caps("heart", 40.0, 1e-5), ("ann", "bob"), "ethics board")
    assert filter_order(40.0, 1e-5) == 2
    wider = ledger.state(heart.model_copy(update={"epsilon": 40.0}))[0]
    assert (wider.cap, wider.order) == (40.0, 6)
    assert wider.committed == at_order([PLAN.event()])


def test_without_a_reservation_nothing_is_charged(site: Site, heart: DatasetSettings) -> None:
    with pytest.raises(BudgetExceeded):
        ledger.charge(site, heart, "a" * 64, 1, one_round())
    assert spent(heart) == 0


def test_a_second_study_that_does_not_fit_is_refused_and_fits_after_the_first_closes(
    site: Site, heart: DatasetSettings
) -> None:
    assert at_order([PLAN.event()]) < 4 < at_order([PLAN.event(), PLAN.event()])
    ledger.reserve(site, heart, "a" * 64, whole())
    ledger.charge(site, heart, "a" * 64, 1, one_round())
    with pytest.raises(BudgetExceeded, match="above the cap of 4"):
        ledger.reserve(site, heart, "b" * 64, whole())
    ledger.close(site, "a" * 64)
    charged = spent(heart)
    assert charged > 0
    with pytest.raises(BudgetExceeded, match="closed"):
        ledger.charge(site, heart, "a" * 64, 2, one_round())
    ledger.reserve(site, heart, "c" * 64, whole())
    assert spent(heart) == charged, "closing must refund nothing that was charged"


def test_what_a_closed_study_charged_still_counts(site: Site, heart: DatasetSettings) -> None:
    ledger.reserve(site, heart, "a" * 64, whole())
    for number in range(1, 16):
        ledger.charge(site, heart, "a" * 64, number, one_round())
    ledger.close(site, "a" * 64)
    with pytest.raises(BudgetExceeded, match="above the cap"):
        ledger.reserve(site, heart, "b" * 64, whole())


def test_the_two_partitions_are_gated_apart(site: Site, heart: DatasetSettings) -> None:
    ledger.reserve(site, heart, "a" * 64, {**whole(), "held_out": PrivacyCost(PLAN.event(), PLAN.event())})
    training, held_out = ledger.state(heart)
    assert training.committed == held_out.committed < 2 * training.committed


def test_a_budget_can_be_read_while_a_study_has_reserved(site: Site, heart: DatasetSettings) -> None:
    ledger.reserve(site, heart, "a" * 64, whole())
    state = ledger.state(heart)[0]
    assert state.spent == 0
    assert state.committed == pytest.approx(at_order([PLAN.event()]))
    after = ledger.Reading.of(heart).after(whole())["training"]
    assert after == pytest.approx(at_order([PLAN.event(), PLAN.event()]))


#: Reserves many small studies until refused; prints one line after each that was written.
SPENDER = """
    import sys
    from pathlib import Path
    from datasites.hospital.site import Site
    site = Site.open(Path(sys.argv[1]))
    from datasites.hospital.budget import ledger
    from datasites.privacy.plan import PrivacyPlan
    plan = PrivacyPlan(clip=1.0, noise_multiplier=2.0, sampling_rate=0.3, rounds=1, steps_per_round=2)
    asked = {"training": ledger.PrivacyCost(plan.event(), plan.event())}
    heart = site.home.dataset("heart")
    number = 0
    print("ready", flush=True)
    while True:
        study = f"{sys.argv[2]}-{number:05d}".ljust(64, "0")
        number += 1
        try:
            ledger.reserve(site, heart, study, asked)
            ledger.charge(site, heart, study, 1, asked)
        except ledger.BudgetExceeded:
            break
        print(study, flush=True)
"""


def spender(home: Home, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SPENDER), str(home.root), name], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_threads_and_processes_at_once_never_pass_the_cap(site: Site, heart: DatasetSettings, home: Home) -> None:
    """Two processes and eight threads race for one budget.

    Without immediate transactions the losers would read one budget and fail on a locked database instead.
    """
    from django.db import connection

    small = PrivacyPlan(clip=1.0, noise_multiplier=2.0, sampling_rate=0.3, rounds=1, steps_per_round=2)
    released: list[str] = []
    failures: list[Exception] = []

    def race(name: int) -> None:
        for number in range(40):
            study = f"thread{name}-{number}".ljust(64, "0")
            try:
                ledger.reserve(site, heart, study, whole(small))
                ledger.charge(site, heart, study, 1, one_round(small))
            except BudgetExceeded:
                break
            except Exception as error:
                failures.append(error)
                break
            released.append(study)
        connection.close()

    processes = [spender(home, f"process{i}") for i in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        assert process.stdout is not None
        released += process.stdout.read().split()  # not communicate(): it would skip what readline() has buffered
        assert process.wait(timeout=120) == 0, "a process that lost the race ended otherwise than by the budget"
    assert not failures, "a thread that lost the race met another error than the budget's"
    assert spent(heart) <= heart.epsilon + 1e-6
    # Reservations neither: a charge would find them too many, but approvals would rest on what nobody can pay.
    assert ledger.state(heart)[0].committed <= heart.epsilon + 1e-6
    assert at_order([small.event()] * (len(released) + 1)) > heart.epsilon, "the race stopped early"
    assert at_order([small.event()] * len(released)) <= spent(heart) + 1e-9


def spend_until_killed(site: Site, number: int, report: int) -> None:
    """In a forked child: reserve and charge one study after the other, and say each on `report` once it is charged."""
    small = PrivacyPlan(clip=1.0, noise_multiplier=40.0, sampling_rate=0.1, rounds=1, steps_per_round=1)
    for study_number in range(10_000):
        study = f"kill{number}-{study_number}".ljust(64, "0")
        ledger.reserve(site, ROOMY, study, whole(small))
        ledger.charge(site, ROOMY, study, 1, one_round(small))
        os.write(report, study.encode())


ROOMY = DatasetSettings(
    name="roomy", table="t", mapping="m", mock="k", summary="s", declared_patients=1, epsilon=50, delta=1e-3,
    study_epsilon=50,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kills", [30, pytest.param(100, marks=pytest.mark.long)])
def test_kills_at_random_moments_never_lose_a_charge(site: Site, kills: int) -> None:
    """What a process announced after charging is in the ledger, whatever instant it was killed at; log and database
    tell one story once the line that was being written is finished."""
    from django.db import connection

    from datasites.hospital.models import LedgerEntry

    draw = random.Random(5)
    announced: list[str] = []
    datasets = (*site.home.settings.datasets, ROOMY)
    home = replace(site.home, settings=site.home.settings.model_copy(update={"datasets": datasets}))
    open_populations(replace(site, home=home))
    whole(PLAN)  # prices are computed before forking, so that the children spend their time in the database
    for number in range(kills):
        connection.close()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                spend_until_killed(site, number, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            # Every other one some time after its first charge, however slow the machine is; the others while young.
            data = pipe.read(64) if number % 2 else b""
            time.sleep(draw.uniform(0.0, 0.06))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            data = (data + pipe.read()).decode()
        announced += [data[start : start + 64] for start in range(0, len(data), 64)]
    pending.finish_all(site)
    require_one_story(site.home)
    charged = set(LedgerEntry.objects.filter(kind="charge").values_list("study_hash", flat=True))
    reserved = set(LedgerEntry.objects.filter(kind="reserve").values_list("study_hash", flat=True))
    assert len(announced) >= kills / 2, "the children were killed before they did anything"
    assert set(announced) <= charged <= reserved
    assert len(charged) - len(set(announced)) <= kills, "more than one charge per kill was not announced"
    assert ledger.state(ROOMY)[0].committed <= 50


def test_no_decision_reads_a_clock(site: Site, heart: DatasetSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    from django.utils import timezone

    ledger.reserve(site, heart, "a" * 64, whole())
    ledger.charge(site, heart, "a" * 64, 1, one_round())
    before = spent(heart)
    past = datetime.datetime(1990, 1, 1, tzinfo=datetime.UTC)
    monkeypatch.setattr(timezone, "now", lambda: past)
    assert spent(heart) == before
    with pytest.raises(BudgetExceeded):
        ledger.reserve(site, heart, "a" * 64, whole())


def test_an_older_database_reads_the_same(heart: DatasetSettings) -> None:
    """Stored charges of format 1, byte for byte as first written, must price the same for ever."""
    from datasites.hospital.models import LedgerEntry

    LedgerEntry.objects.create(
        population="heart",
        partition="training",
        study_hash="f" * 64,
        kind="charge",
        round=1,
        charges=[
            {
                "format": 1,
                "mechanism": "poisson_sampled_gaussian",
                "noise_multiplier": 4.0,
                "sampling_rate": 0.3,
                "count": 75,
            }
        ],
    )
    assert spent(heart) == pytest.approx(at_order([PLAN.event()]))


def test_a_charge_of_a_newer_format_stops_everything(site: Site, heart: DatasetSettings) -> None:
    from datasites.privacy.events import UnknownEvent

    line = pending.Line(kind="charge", population="heart", study="f" * 64, round=1)
    pending.write(site, line, {"training": StoredPrice('[{"format":2}]', "[]")})
    with pytest.raises(UnknownEvent):
        ledger.reserve(site, heart, "a" * 64, whole())


def test_the_database_file_is_synced_in_full(home: Home) -> None:
    from django.db import connection

    if connection.vendor != "sqlite":
        pytest.skip("of SQLite's file")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous")
        assert cursor.fetchone()[0] == 2
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone()[0] == "wal"
    assert Path(connection.settings_dict["NAME"]) == home.database
