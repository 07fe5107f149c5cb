"""Budgets belong to patients: other names share one, and only two people widen what patients were promised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.hospital.budget import ledger, population
from datasites.hospital.budget.balances import StoredPrice
from datasites.hospital.budget.ledger import BudgetExceeded, PrivacyCost
from datasites.hospital.budget.population import open_populations
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.config import CONFIG_FILE, DatasetSettings, Home
from datasites.hospital.proposals import two_people
from datasites.hospital.site import Site
from datasites.privacy.plan import PrivacyPlan
from datasites.study.errors import InputError
from tests.hospital.desk import Desk

PLAN = PrivacyPlan(clip=1.0, noise_multiplier=4.0, sampling_rate=0.3, rounds=15, steps_per_round=5)
WHOLE = {"training": PrivacyCost(PLAN.event(), PLAN.local_event())}


@pytest.fixture
def settings(home: Home) -> Iterator[Path]:
    """datasite.toml, to write to."""
    file = home.root / CONFIG_FILE
    original = file.read_bytes()
    yield file
    file.write_bytes(original)


def rewritten(site: Site, settings: Path, old: str, new: str) -> Site:
    """The site as a service sees it that starts after a change of datasite.toml."""
    text = settings.read_text()
    assert old in text
    settings.write_text(text.replace(old, new))
    return Site(Home.open(site.home.root), site.identity, site.audit)


def facts(site: Site, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in site.home.audit.read_bytes().splitlines()]
    return [line["fields"] for line in lines if line["kind"] == kind]


def test_two_datasets_of_one_population_share_its_budget_and_its_split(site: Site, heart: DatasetSettings) -> None:
    again = heart.model_copy(update={"name": "heart-again", "table": "data/copy.csv"})
    ledger.reserve(site, heart, "a" * 64, WHOLE)
    with pytest.raises(BudgetExceeded, match="population heart") as caught:
        ledger.reserve(site, again, "b" * 64, WHOLE)
    assert "new dataset" not in str(caught.value)
    assert ledger.state(again)[0].committed == ledger.state(heart)[0].committed > 0
    assert population.split_of(again).split_key == population.split_of(heart).split_key


def test_datasets_of_one_population_say_one_budget(home: Home, settings: Path) -> None:
    text = settings.read_text()
    other = text[text.index("[[datasets]]") :].replace('"heart"', '"other"').replace("4.0", "9.0")
    settings.write_text(text + other + 'population = "heart"\n')
    with pytest.raises(InputError, match="population heart.*epsilon"):
        Home.open(home.root)
    settings.write_text(text + other.replace("9.0", "4.0") + 'population = "heart"\n')
    assert [dataset.population for dataset in Home.open(home.root).settings.datasets] == ["heart", "heart"]


@pytest.mark.parametrize(("old", "new"), [("delta = 1e-5", "delta = 0.05"), ("\nepsilon = 4.0", "\nepsilon = 40.0")])
def test_a_wider_budget_in_the_file_is_refused_until_two_people_widen_it(
    desk: Desk,
    settings: Path,
    old: str,
    new: str,
) -> None:
    site, heart = desk.site, desk.site.home.dataset("heart")
    before = ledger.state(heart)[0]
    site = rewritten(site, settings, old, new)
    wider = site.home.dataset("heart")
    with pytest.raises(InputError, match="datasites budget widen heart"):
        open_populations(site)
    with pytest.raises(InputError, match="datasites budget widen heart"):
        ledger.reserve(site, wider, "a" * 64, WHOLE)
    state = ledger.state(wider)[0]
    assert (state.cap, state.delta) == (before.cap, before.delta), "what is shown is what is in force"
    entered = two_people.propose_widening(site, desk.login("ann"), "heart", "ethics board of May")
    for name in ("ann", "cyd"):
        with pytest.raises(ReviewError, match="different person of the other role"):
            two_people.confirm(site, desk.login(name), entered.pk)
    with pytest.raises(ReviewError, match="dee is auditor"):
        two_people.confirm(site, desk.login("dee"), entered.pk)
    with pytest.raises(InputError):
        ledger.reserve(site, wider, "a" * 64, WHOLE)
    two_people.confirm(site, desk.login("bob"), entered.pk)
    open_populations(site)
    ledger.reserve(site, wider, "a" * 64, WHOLE)
    (widened,) = facts(site, "budget_widened")[-1:]
    assert (widened["population"], widened["entered_by"], widened["confirmed_by"]) == ("heart", "ann", "bob")
    assert (widened["epsilon"], widened["delta"]) == (wider.epsilon, wider.delta)
    promised = population.guarantee("heart")
    assert promised is not None
    assert (promised.epsilon, promised.delta) == (wider.epsilon, wider.delta)


def test_what_is_confirmed_is_what_the_file_still_says(desk: Desk, settings: Path) -> None:
    site = rewritten(desk.site, settings, "\nepsilon = 4.0", "\nepsilon = 5.0")
    entered = two_people.propose_widening(site, desk.login("ann"), "heart", "ethics board")
    site = rewritten(site, settings, "\nepsilon = 5.0", "\nepsilon = 50.0")
    with pytest.raises(ReviewError, match="epsilon 50"):
        two_people.confirm(site, desk.login("bob"), entered.pk)
    two_people.withdraw(site, desk.login("bob"), entered.pk)
    with pytest.raises(ReviewError, match="does not wait"):
        two_people.confirm(site, desk.login("bob"), entered.pk)


def test_a_narrower_budget_holds_at_once_and_is_recorded_and_narrow_is_what_stays(site: Site, settings: Path) -> None:
    wide = site.home.dataset("heart")
    ledger.reserve(site, wide, "a" * 64, WHOLE)
    narrow = rewritten(site, settings, "\nepsilon = 4.0", "\nepsilon = 3.0")
    assert ledger.state(narrow.home.dataset("heart"))[0].cap == 3.0
    with pytest.raises(BudgetExceeded, match="cap of 3"):
        ledger.reserve(site, narrow.home.dataset("heart"), "b" * 64, WHOLE)
    open_populations(narrow)
    assert facts(narrow, "budget_narrowed")[-1]["epsilon"] == 3.0
    with pytest.raises(InputError, match="promised"):
        open_populations(site)
    promised = population.guarantee("heart")
    assert promised is not None
    assert promised.epsilon == 4.0, "what was ever in force is what these patients were guaranteed"


def test_a_service_with_a_wider_file_does_not_start(desk: Desk, settings: Path) -> None:
    from datasites.hospital.service import Service

    site = rewritten(desk.site, settings, "delta = 1e-5", "delta = 0.05")
    with pytest.raises(InputError, match="budget widen"):
        Service(site)


def test_a_larger_delta_is_accepted_by_two_people(desk: Desk) -> None:
    assert population.accepted_delta("heart") == 0.0
    entered = two_people.propose_delta(desk.site, desk.login("bob"), "heart", 1e-4, "a small hospital")
    assert population.accepted_delta("heart") == 0.0
    with pytest.raises(ReviewError, match="other role"):
        two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    two_people.confirm(desk.site, desk.login("cyd"), entered.pk)
    assert population.accepted_delta("heart") == 1e-4
    assert facts(desk.site, "delta_accepted")[-1]["confirmed_by"] == "cyd"
    assert population.agreed_caps("heart") == population.Caps("heart", 4.0, 1e-5), "it is no cap"


def test_the_spending_of_an_older_database_stays_with_the_population_of_the_same_name(database: Home) -> None:
    """Migrated rows of a ledger that knew datasets only keep counting: nothing starts at zero."""
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    if connection.vendor != "sqlite":
        pytest.skip("migrates back and forth on SQLite")
    before, after = [("hospital", "0004_rejoin_and_abstention")], [("hospital", "0005_populations")]
    old = MigrationExecutor(connection)
    old.migrate(before)
    try:
        apps = old.loader.project_state(before).apps
        apps.get_model("hospital", "Split").objects.create(dataset="heart", fraction=0.5, salt=b"k" * 32)
        apps.get_model("hospital", "LedgerEntry").objects.create(
            dataset="heart",
            partition="training",
            study_hash="f" * 64,
            kind="charge",
            round=1,
            charges=json.loads(StoredPrice.of(WHOLE["training"]).charges),
        )
    finally:
        MigrationExecutor(connection).migrate(after)
        call_command("migrate", verbosity=0)
    heart = database.dataset("heart")
    assert ledger.state(heart)[0].spent > 2
    split = population.split_of(heart)
    assert (bytes(split.split_key), split.fraction) == (b"k" * 32, 0.5)
