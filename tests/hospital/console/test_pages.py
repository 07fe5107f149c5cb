"""Each page opens for its readers, and says what the hospital's people need."""

from __future__ import annotations

from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from django.forms import Form, Textarea

from datasites.hospital.budget import ledger
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.freeze import freeze
from datasites.hospital.cases.views import Examined, approved_before, view_case
from datasites.hospital.console import code, forms
from datasites.hospital.models import BudgetFact, Case, Population, Round
from datasites.privacy.accountant import epsilon_pld
from datasites.study.audit_chain import records
from datasites.study.manifest import PrivacyTerms
from tests.hospital.console.conftest import Console
from tests.hospital.desk import job, values_of

READABLE = ["cases", "studies", "budget", "budget/heart", "agreements", "roster", "audit", "datasets", "datasets/heart"]


@pytest.mark.parametrize("page", READABLE)
def test_a_page_opens(console: Console, page: str) -> None:
    console.desk.agree()
    response = console.client("ann").get(f"/{page}/")
    assert response.status_code == 200, response.content.decode()[:2000]


def test_a_case_shows_what_a_decision_needs(console: Console) -> None:
    console.desk.agree()
    response = console.client("ann").get(f"/cases/{console.number}/")
    assert response.status_code == 200
    html = response.content.decode()
    for words in (console.desk.row.approval_hash, "baa-university", "build_model", "Rehearsal", "Budget after"):
        assert words in html
    assert "sampling rate 0.3; delta 1e-05 x " in html
    assert "accept the risk.</dd>" in html


def test_pages_say_who_reads_a_reason_and_which_figures_are_guarantees(console: Console) -> None:
    client = console.client("ann")
    paths = (f"/cases/{console.number}/", "/budget/", "/budget/heart/")
    case, budgets, budget = (unescape(client.get(path).content.decode()) for path in paths)
    assert "Read by the researcher exactly as written" in case
    assert "not sent to the researcher" in case
    assert "The cap is what these patients are guaranteed" in budgets
    assert "The other figures show how much of it is used" in budgets
    assert "by themselves they guarantee nothing" in budgets
    assert "all other figures show how much of it is used" in budget
    population, now = Population.objects.get(name="heart"), console.desk.site.home.dataset("heart")
    wider = now.epsilon + 1
    BudgetFact.objects.create(population=population, what="widened", epsilon=wider, delta=now.delta)
    budget = unescape(client.get("/budget/heart/").content.decode())
    assert f"these patients are guaranteed epsilon {wider:g} at delta" in budget


def test_every_field_for_words_of_ones_own_says_who_reads_them() -> None:
    fields = [
        (form.__name__, name, str(field.help_text))
        for form in vars(forms).values()
        if isinstance(form, type) and issubclass(form, Form)
        for name, field in form.base_fields.items()
        if isinstance(field.widget, Textarea)
    ]
    assert len(fields) >= 8
    assert [(form, name) for form, name, words in fields if "Read by " not in words] == []


def test_a_rejection_has_words_for_the_researcher_and_a_reason_that_stays_here(console: Console) -> None:
    ann = console.client("ann")
    assert b"Write what the researcher is to read" in console.decide(ann, "reject", reason="ward 7 objects").content
    assert console.decide(ann, "approve", message="gladly").status_code == 400
    console.desk.nothing_happened()
    assert console.decide(ann, "reject", reason="ward 7 objects", message="not this year").status_code == 302
    console.desk.row.refresh_from_db()
    assert console.desk.row.note == "not this year"
    logged = [r.fields for r in records(console.desk.site.home.audit) if r.kind == "rejected"][-1]
    assert (logged["reason"], logged["told"]) == ("ward 7 objects", "not this year")


def test_after_approval_the_page_shows_the_last_decision_and_not_a_new_one_for_intake(console: Console) -> None:
    from datasites.hospital.cases.as_text import describe

    desk = console.desk
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    html = console.client("dee").get(f"/cases/{console.number}/").content.decode()
    assert "As last evaluated, before approve" in html
    assert "<strong>allow</strong>" in html
    assert 'name="password"' not in html
    assert "Policies as last asked, before approve: allow" in describe(desk.site, console.number)


def test_a_case_shows_what_holds_here_what_the_study_costs_and_what_it_cost(console: Console) -> None:
    from datasites.hospital.cases.as_text import describe

    desk = console.desk
    shown = describe(desk.site, console.number)
    assert "Privacy here: epsilon 3 at delta 1e-05 per patient, at most\n" in shown
    priced = open_case(desk.site.home, desk.row).study_plan.epsilon
    assert 2.99 < priced <= 3
    assert f"This study costs: training {priced:.3f}, evaluation " in shown
    assert "cost so far" not in shown
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    case = open_case(desk.site.home, Case.objects.get(pk=console.number))
    ledger.charge(desk.site, case.dataset, desk.row.study_hash, 1, case.planned(1))
    one = epsilon_pld([case.planned(1)["training"].event], case.study_plan.priced_delta)
    cost = f"training patients {one:.3f}, held-out patients 0.000 at delta 1e-05 (PLD), in 1 charged round(s)"
    assert f"It has cost so far: {cost}" in describe(desk.site, console.number)
    ledger.close(desk.site, desk.row.study_hash)
    Case.objects.filter(pk=console.number).update(state="closed")
    assert f"It cost: {cost}" in describe(desk.site, console.number)
    html = unescape(console.client("dee").get(f"/cases/{console.number}/").content.decode())
    assert f"<dt>It cost</dt><dd>{cost}.</dd>" in html
    assert "<dt>The whole study would cost</dt>" in html
    assert "Budget now, over all studies" in html
    budget = console.client("dee").get("/budget/heart/").content.decode()
    assert f'<a href="/cases/{console.number}/">{desk.row.study_name}</a>' in budget
    seen = view_case(desk.site.home, Case.objects.get(pk=console.number)).examined
    assert seen is not None
    after = {line.partition: line.after for line in seen.budget}
    assert after == {s.partition: s.spent for s in ledger.state(case.dataset)}


def test_what_a_study_asks_for_never_passes_for_what_holds_here() -> None:
    terms = PrivacyTerms(epsilon=9.0, delta=1e-4, clip=1.0, sampling_rate=0.1)
    made = SimpleNamespace(epsilon=2.999, evaluation_epsilon=1.5, delta=1e-5)
    row, plan = SimpleNamespace(state="review"), SimpleNamespace(unit="patient")
    case: Any = SimpleNamespace(
        row=row, study=SimpleNamespace(privacy=terms), study_plan=made, study_cap=3.0, plan=plan
    )
    unused: Any = None
    view = Examined(case, unused, (), (), {}, unused, None)
    assert view.privacy[0] == (
        "Privacy here",
        "epsilon 3 at delta 1e-05 per patient, at most; the study asks for epsilon 9 at delta 0.0001",
    )


def test_the_difference_is_to_the_last_version_approved_earlier(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to one that came later, was never approved, or is another researcher's."""
    desk = console.desk
    values = values_of(desk.row)
    Case.objects.filter(pk=desk.row.pk).delete()

    def version(word: bytes, state: str, **fields: str) -> Case:
        source = job().files["model.py"].replace(b"tanh", word)
        package = freeze({**job().files, "model.py": source}, desk.site.home.frozen)
        name = f"{word.decode()}-{state}"
        return Case.objects.create(
            **{**values, "study_hash": package.digest(), "job_name": name, "state": state, **fields}
        )

    version(b"sigmoid", "closed")
    approved = version(b"relu", "revoked")
    version(b"silu", "rejected")
    version(b"elu", "closed", submitted_by="another@university.example.org")
    row = Case.objects.create(**{**values, "job_name": "now"})
    version(b"softplus", "running")
    found = approved_before(desk.site.home, row)
    assert found is not None
    assert found[0] == approved
    html = console.client("ann").get(f"/cases/{row.pk}/").content.decode()
    assert "torch.relu(" in html
    assert "torch.sigmoid(" not in html
    assert f'href="/cases/{approved.pk}/">case {approved.pk}</a>' in html
    assert "Too many lines are alike" not in html
    monkeypatch.setattr(code, "MOST_PAIRS", 0)
    assert "Too many lines are alike" in console.client("ann").get(f"/cases/{row.pk}/").content.decode()


def test_evidence_and_log_can_be_taken_away(console: Console) -> None:
    desk = console.desk
    desk.agree()
    desk.approve("ann")
    client = console.client("dee")
    bundle = client.post(f"/cases/{console.number}/evidence/")
    assert bundle.headers["Content-Type"] == "application/zip"
    assert bundle.content[:2] == b"PK"
    log = client.post("/audit/export/")
    assert log.content == desk.site.home.audit.read_bytes()
    assert b"The log is sound" in client.post("/audit/verify/").content
    assert not list(desk.site.home.root.glob(".evidence-*"))


def test_a_changed_frozen_copy_is_said_on_the_page_and_can_not_be_approved(console: Console) -> None:
    desk = console.desk
    desk.agree()
    model = desk.site.home.frozen / desk.row.study_hash / "model.py"
    original = model.read_bytes()
    client = console.client("ann")
    try:
        model.chmod(0o600)
        model.write_bytes(original.replace(b"tanh", b"relu"))
        assert b"not what was approved" in client.get(f"/cases/{console.number}/").content
        assert console.decide(client).status_code == 409
        desk.nothing_happened()
    finally:
        model.write_bytes(original)
        model.chmod(0o400)


def test_what_if_says_whether_a_study_would_fit(console: Console) -> None:
    client = console.client("ann")
    page = client.get("/budget/heart/", {"epsilon": 1, "rounds": 5, "steps": 2, "rate": 0.1}).content
    assert b"It would fit" in page
    assert client.get("/budget/heart/", {"epsilon": "nan", "rounds": 5, "steps": 2, "rate": 0.1}).status_code == 400


def test_a_running_study_is_shown_as_it_stands(console: Console) -> None:
    """Not with what was said before it was approved, and with no more rounds than it has."""
    from datasites.hospital.cases.as_text import describe

    desk = console.desk
    stale = "denied when it was examined, by baa"
    planned = desk.row.approval_terms["plan"]["rounds"]
    for state in (Case.State.APPROVED, Case.State.RUNNING, Case.State.CLOSED):
        Case.objects.filter(pk=console.number).update(state=state, note=stale)
        assert stale not in describe(desk.site, console.number)
        for page in (f"/studies/{console.number}/", "/cases/", f"/cases/{console.number}/"):
            assert stale not in console.client("dee").get(page).content.decode()
    Case.objects.filter(pk=console.number).update(state=Case.State.STOPPED, note="no space")
    assert "no space" in describe(desk.site, console.number)
    for number in range(1, planned + 2):
        Round.objects.create(case_id=console.number, round=number, epoch=0, state=Round.State.UNMASKED)
        html = console.client("dee").get(f"/studies/{console.number}/").content.decode()
        how_far = f"{min(number, planned)} of {planned} training rounds, evaluation "
        assert how_far + ("done" if number > planned else "to come") in html
