"""What evidence is held against: the approved plan, the caps, and what people entered as the log bound it."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from datasites.hospital.audit.bindings import bind, commit, openings
from datasites.hospital.audit.entered import pinned_by_hand
from datasites.hospital.budget.balances import prices_of
from datasites.hospital.budget.ledger_log import in_log
from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.compliance import decide
from datasites.hospital.config import Home
from datasites.hospital.doctor import examine
from datasites.hospital.evidence import verify_bundle
from datasites.hospital.evidence.bundle import build_bundle
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.people.accounts import PersonError, deactivate, written_down
from datasites.hospital.people.agreements import terminate_agreement
from datasites.hospital.people.roster import revoke_party
from datasites.privacy.accountant import epsilon_at_order
from datasites.privacy.events import Charge
from datasites.study.audit_chain import records
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.roster import Roster
from policies.registry import Registry, RegistryFile
from tests.adversarial.tampered_bundles import good_bundle
from tests.adversarial.tampered_contents import (
    charged_for_the_evaluation,
    in_the_log,
    says_twice,
    widened,
    with_the_key,
)
from tests.hospital import desk as review_desk
from tests.hospital.conftest import log_pins
from tests.hospital.desk import PASSWORD, Desk, by_hand
from tests.hospital.evidence_of import ROUND, TERMS, Hospital, failed, pack, rechain, resign, unpack
from tests.hospital.invited import enter
from tests.hospital.unequal import manifests
from tests.policies.facts_of import OFFICER, STEWARD


def counted(asked: dict, local: bool) -> dict[str, Counter]:
    """What is asked of each partition, as the verifier reads it in the log."""
    fields = in_log(prices_of(asked))
    return verify_bundle._counted(json.loads(fields["local_charges" if local else "charges"]))


@pytest.mark.parametrize("local", [False, True], ids=["gated", "against one who sees the vectors"])
@pytest.mark.parametrize("both_sides", [False, True])
def test_the_verifier_expects_of_each_round_what_the_hospital_charges(
    case: OpenCase,
    both_sides: bool,
    local: bool,
) -> None:
    case = replace(case, approval_terms=case.approval_terms.model_copy(update={"both_sides": both_sides}))
    plan = verify_bundle._Plan(json.loads(case.approval_terms.canonical()))
    assert plan.of(0, False, local=local) == counted(case.asked(), local)
    interim = {}
    for manifest in manifests(case):
        holds = manifest.evaluate == "interim"
        assert plan.of(manifest.round, holds, local=local) == counted(case.round_asked(manifest), local)
        interim[manifest.round] = holds
    plan.require_schedule(interim)
    with pytest.raises(verify_bundle.Fault, match="at equal distances"):
        plan.require_schedule({**interim, 4: True})
    with pytest.raises(verify_bundle.Fault, match="at equal distances"):
        plan.require_schedule({**interim, 10: False})


def opened(order: int) -> dict[str, Any]:
    """A record that opens a budget."""
    return {"seq": 1, "kind": "budget_opened", "fields": {"epsilon": 1.0, "delta": 1e-5, "order": order}}


@pytest.mark.parametrize("order", [2, 6, 17, 64, 512])
@pytest.mark.parametrize(("noise", "rate"), [(0.7, 1.0), (4.0, 1.0), (1.1, 0.01), (2.5, 0.3), (30.0, 0.9)])
def test_the_verifier_prices_as_the_accountant_does(order: int, noise: float, rate: float) -> None:
    kind = "gaussian" if rate == 1 else "poisson_sampled_gaussian"
    charge = Charge(mechanism=kind, noise_multiplier=noise, sampling_rate=rate, count=3)  # type: ignore[arg-type]
    gate = verify_bundle._Gate()
    gate.promise(opened(order))
    charges = canonical_json({"training": [charge.model_dump(mode="json")]}).decode()
    gate.line({"kind": "reserved", "fields": {"study": "a" * 64, "charges": charges}})
    assert gate.reads("training") == pytest.approx(epsilon_at_order([(charge,)], order, 1e-5), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("declared", [True, False])
def test_what_was_settled_after_a_restore_is_said_and_not_held_against_the_plan(tmp_path: Path, declared: bool) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "b.zip"
    hospital.run(rounds=2)
    if declared:
        last = hospital.heads[-1]
        restored = {"continues": last.hash, "releases": last.releases, "reason": "the disk broke"}
        hospital.log.append("restored", **restored, entered_by=STEWARD, confirmed_by=OFFICER)
    (step,) = ROUND["training"]
    hospital.charge(3, {"training": [{**step, "count": 5}]}, settled=True)
    found = {check.name: check for check in build_bundle(path, hospital.contents)}
    assert found["charges"].ok == declared
    words = "1 were SETTLED by two people" if declared else "the log holds none before it"
    assert words in found["charges"].found


def test_a_charge_of_the_evaluation_does_not_pass_for_one_of_training(tmp_path: Path) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "b.zip"
    hospital.run()
    assert all(check.ok for check in build_bundle(path, hospital.contents))
    files = unpack(path)
    charged_for_the_evaluation()(files, hospital.identity)
    pack(path, resign(files, hospital.identity))
    found = failed(path, hospital.identity)
    assert set(found) == {"charges"}
    assert "charges round 4, and its entry in ledger.json says 1" in found["charges"]


def test_a_reservation_that_states_no_cap_of_the_study_is_said(tmp_path: Path) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "b.zip"
    hospital.run()
    checks = {check.name: check for check in build_bundle(path, hospital.contents)}
    assert "NOT HELD" not in checks["caps"].found
    files = unpack(path)
    rechain(files, hospital.identity, lambda bodies: [b["fields"].pop("study_epsilon", None) for b in bodies])
    pack(path, resign(files, hospital.identity))
    checks = {check.name: check for check in verify_bundle.verify(path, hospital.identity.public_key)}
    assert all(check.ok for check in checks.values())
    assert checks["caps"].found.endswith(
        "the study's own cap in 6 decisions is NOT HELD AGAINST the log, in which no reservation states it"
    )


@pytest.mark.parametrize("kind", ["reserved", "charged"])
def test_amounts_in_the_log_have_one_reading(tmp_path: Path, kind: str) -> None:
    hospital, path = Hospital(tmp_path), tmp_path / "b.zip"
    hospital.run()
    build_bundle(path, hospital.contents)
    files = unpack(path)
    rechain(files, hospital.identity, lambda bodies: says_twice(kind, bodies))
    pack(path, resign(files, hospital.identity))
    assert "charges in the log is not in canonical form" in failed(path, hospital.identity)["charges"]


@pytest.mark.parametrize("kind", ["another day", "a wider cap"])
def test_what_a_hospital_signed_anew_throughout_is_found(kind: str, tmp_path: Path) -> None:
    files, key = good_bundle(tmp_path)
    for tampered in (one for one in with_the_key() if one.kind == kind):
        tampered.write(tmp_path / "b.zip", files, key)
        assert tampered.words in failed(tmp_path / "b.zip", key).get(tampered.check, ""), tampered.what


def test_two_people_widen_a_cap(tmp_path: Path) -> None:
    files, key = good_bundle(tmp_path)
    by = {"entered_by": STEWARD, "confirmed_by": OFFICER}
    in_the_log(lambda bodies: widened(bodies, "budget_widened", **by))(tmp_path / "b.zip", files, key)
    assert failed(tmp_path / "b.zip", key) == {}


@pytest.mark.parametrize(
    ("logged", "holds"),
    [("24T00:00", True), ("23T23:51", True), ("23T23:49", False), ("25T00:09", True), ("25T00:11", False)],
)
def test_a_decision_is_logged_on_the_day_of_its_facts_but_for_some_minutes(
    logged: str, holds: bool, tmp_path: Path
) -> None:
    hospital = Hospital(tmp_path)
    hospital.log._clock = lambda: datetime.datetime.fromisoformat(f"2026-11-{logged}+00:00")
    hospital.enter()
    hospital.decide("intake")
    found = {check.name: check.ok for check in build_bundle(tmp_path / "b.zip", hospital.contents)}
    assert [name for name, ok in found.items() if not ok] == ([] if holds else ["agreements"])


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("rounds", 10**19, "1 to 10000"),
        ("rounds", 10_001, "1 to 10000"),
        ("rounds", 0, "1 to 10000"),
        ("rounds", True, "1 to 10000"),
        ("rounds", "3", "1 to 10000"),
        ("steps_per_round", "9", "1 or more"),
        ("steps_per_round", 2.0, "1 or more"),
    ],
)
def test_a_plan_has_whole_numbers_within_bounds(name: str, value: object, rule: str) -> None:
    terms = json.loads(TERMS)
    verify_bundle._Plan(terms)
    terms["plan"][name] = value
    with pytest.raises(verify_bundle.Fault, match=f"whose {name} is .* and not a whole number of {rule}"):
        verify_bundle._Plan(terms)


@pytest.mark.parametrize(("rounds", "every"), [(10_000, 1), (10_000, 9_999), (10_000, 5_000), (10, 3)])
def test_the_longest_plan_has_a_schedule_that_is_found(rounds: int, every: int) -> None:
    terms = json.loads(TERMS)
    terms["plan"]["rounds"] = rounds
    terms["evaluation_plan"].update(interim=(rounds - 1) // every, interim_multiplier=5.0)
    plan = verify_bundle._Plan(terms)
    interim = {number: number % every == 0 and number < rounds for number in range(1, rounds + 2)}
    plan.require_schedule(interim)
    with pytest.raises(verify_bundle.Fault, match="at equal distances"):
        plan.require_schedule({**interim, rounds: True})


def test_a_new_order_prices_all_that_is_committed_anew() -> None:
    gate, once = verify_bundle._Gate(), verify_bundle._Gate()
    step = {"training": [{**ROUND["training"][0], "count": 3}]}
    for number, order in enumerate((2, 17, 2, 64), start=1):
        gate.promise(opened(order))
        for kind, study, charges in (("reserved", "ab", ROUND), ("charged", "ab", step), ("reserved", "cd", step)):
            text = canonical_json(charges).decode()
            gate.line({"kind": kind, "fields": {"study": study, "charges": text, "round": number}})
    (mechanism,) = verify_bundle._counted(ROUND)["training"]
    once.promise(opened(64))
    # The first study has charged four times three steps, which is more than it reserved: both count.
    steps = 10 + 12 + 3
    whole = canonical_json({"training": [{**ROUND["training"][0], "count": steps}]}).decode()
    once.line({"kind": "reserved", "fields": {"study": "ef", "charges": whole}})
    assert mechanism[1] == 4.0
    assert gate.reads("training") == pytest.approx(once.reads("training"), rel=1e-12)


def test_two_records_of_one_content_show_nothing_alike_and_open_to_it_alone(home: Home) -> None:
    content = {"kind": "person", "name": "ann", "role": "steward", "email": "ann@example.org"}
    one, two = bind(home, content), bind(home, content)
    assert one != two
    opened = list(openings(home, [one, "ab" * 32, "../keys", two]))
    assert [entry["content"] for entry in opened] == [content, content]
    assert commit(bytes.fromhex(opened[0]["salt"]), content) == one
    assert commit(bytes.fromhex(opened[0]["salt"]), {**content, "role": "admin"}) != one
    assert sha256_hex(content["email"].encode()) not in one
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in home.bindings.iterdir())


def last_of(desk: Desk, agreement: str) -> int:
    """The last record that enters or confirms an agreement."""
    return max(r.seq for r in records(desk.site.home.audit) if r.fields.get("agreement") == agreement)


@pytest.mark.parametrize("ends", ["", "2099-12-31"])
def test_an_agreement_typed_into_the_registry_passes_for_none(
    ends: str,
    desk: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree(transport="backup")
    site, path = desk.site, tmp_path / "bundle.zip"
    registry = RegistryFile(site.home.registry, "Cleveland").load()
    assert by_hand(site) == []
    typed = json.loads(registry.canonical())
    for agreement in typed["agreements"]:
        if agreement["terms"]["id"] == "baa-storage":
            agreement["terms"]["services"] = ["transport"]
            if ends:
                agreement |= {"terminated_by": "ann", "terminated_on": ends}
    site.home.registry.write_text(json.dumps(typed, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    assert by_hand(site) == [
        f"baa-storage version 1 is not what record {last_of(desk, 'baa-storage')} of the log binds"
    ]
    denied = decide(site, open_case(site.home, desk.row), "intake")
    assert not denied.allowed
    assert denied.facts is not None
    assert denied.facts.agreements is None
    monkeypatch.setattr(compliance, "agreements_by_hand", lambda *_: [])  # by a datasite that doesn't look
    assert decide(site, open_case(site.home, desk.row), "intake").allowed
    export_evidence(site, desk.row.pk, path)
    found = failed(path, site.identity)
    assert set(found) == {"agreements"}
    assert "baa-storage version 1, which is not what record" in found["agreements"]


@pytest.mark.parametrize("waits", [False, True], ids=["before it was entered", "before it was confirmed"])
def test_an_older_copy_of_the_registry_brings_no_agreement_back(
    waits: bool,
    desk: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version that another one has replaced, and an agreement that has ended, count again by a copy of the file."""
    desk.agree()
    site, path = desk.site, tmp_path / "bundle.zip"
    older = site.home.registry.read_bytes()
    with monkeypatch.context() as patch:
        confirm = review_desk.confirm_agreement

        def confirmed(*what: Any) -> Registry:
            nonlocal older
            older = site.home.registry.read_bytes() if waits else older
            return confirm(*what)

        patch.setattr(review_desk, "confirm_agreement", confirmed)
        desk.agree(transport="backup")
    replaced = last_of(desk, "baa-storage")
    assert not decide(site, open_case(site.home, desk.row), "intake").allowed
    site.home.registry.write_bytes(older)
    assert not decide(site, open_case(site.home, desk.row), "intake").allowed
    words = f"baa-storage version 2, which record {replaced} of the log confirms, is not there"
    assert by_hand(site) == [words]
    with monkeypatch.context() as blind:
        blind.setattr(compliance, "agreements_by_hand", lambda *_: [])
        assert decide(site, open_case(site.home, desk.row), "intake").allowed
    export_evidence(site, desk.row.pk, path)
    assert "baa-storage version 1, and leaves out version 2" in failed(path, site.identity)["agreements"]

    terminate_agreement(site, desk.login("ann"), "baa-storage")
    site.home.registry.write_bytes(older)
    ended = max(record.seq for record in records(site.home.audit))
    assert by_hand(site) == [f"baa-storage version 1 was ended by record {ended} of the log", words]


def test_an_agreement_that_narrows_is_not_taken_away(desk: Desk) -> None:
    desk.agree()
    site, known = desk.site, RegistryFile(desk.site.home.registry, "Cleveland").load()
    fewer = tuple(one for one in known.agreements if one.terms.id != "irb")
    site.home.registry.write_bytes(known.model_copy(update={"agreements": fewer}).canonical())
    words = f"irb version 1, which record {last_of(desk, 'irb')} of the log confirms, is not there"
    assert by_hand(site) == [words]
    assert words in next(said for name, state, said in examine(site, ["agreements"]) if state == "bad")


def test_an_older_copy_of_the_roster_shows_as_one(desk: Desk) -> None:
    site, admin = desk.site, desk.login("ann")
    older, researcher = site.home.roster.read_bytes(), desk.row.submitted_by
    assert pinned_by_hand(site.home, Roster.parse(older).entries) == []
    revoke_party(site, admin, researcher, "their laptop was stolen")
    ended = max(record.seq for record in records(site.home.audit))
    site.home.roster.write_bytes(older)
    words = f"{researcher} was revoked by record {ended} of the log"
    assert pinned_by_hand(site.home, Roster.parse(older).entries) == [words]
    decided = decide(site, open_case(site.home, desk.row), "intake")
    assert decided.facts is not None
    assert (decided.allowed, decided.facts.roster) == (False, None)
    assert words in next(said for name, state, said in examine(site, ["roster"]) if state == "bad")
    log_pins(site, Roster(entries=(Roster.parse(older).get(researcher),)))
    again = max(record.seq for record in records(site.home.audit))
    assert pinned_by_hand(site.home, Roster.parse(older).entries) == []
    pinned = Roster.parse(older).get(researcher)
    typed = pinned.model_copy(update={"email": "x@example.org"})
    other = pinned.model_copy(update={"organisation": "Another"})
    assert pinned_by_hand(site.home, (typed, other)) == [
        "x@example.org was never pinned, according to the log",
        f"{researcher} is not the entry that record {again} of the log pins",
    ]


def test_somebody_who_was_shut_out_is_not_brought_back_by_an_older_database(desk: Desk) -> None:
    site, users = desk.site, get_user_model().objects
    for name, role in (("eve", "steward"), ("joe", "steward")):
        enter(site, name, role, PASSWORD, f"{name}@example.org")
    assert [check.state for check in examine(site, ["people"])] == ["ok"]
    with written_down(site, "person_deactivated", person="eve", by="command line"):
        deactivate("eve", by="")
    ended = max(record.seq for record in records(site.home.audit))
    assert [check.state for check in examine(site, ["people"])] == ["ok"]
    users.filter(username="eve").update(is_active=True)
    users.filter(username="joe").update(email="ann@example.org")
    (check,) = examine(site, ["people"])
    assert check.state == "bad"
    assert f"eve was shut out by record {ended} of the log" in check.message
    assert "joe is not the person that record" in check.message
    for name, words in (("eve", "was shut out"), ("joe", "is not the person")):
        with pytest.raises(PersonError, match=words):
            desk.login(name)


def test_evidence_of_a_real_hospital_opens_what_its_study_rests_on_and_nothing_else(
    desk: Desk,
    tmp_path: Path,
) -> None:
    desk.agree()
    desk.approve("ann")
    site, path = desk.site, tmp_path / "bundle.zip"
    assert decide(site, open_case(site.home, desk.row), "intake").allowed
    terminate_agreement(site, desk.login("ann"), "baa-storage")
    assert not decide(site, open_case(site.home, desk.row), "intake").allowed
    checks = export_evidence(site, desk.row.pk, path)
    assert [check for check in checks if not check.ok] == []
    with path.open("rb") as file:
        opened = list(verify_bundle._Bundle(verify_bundle._Archive(file)).entries("openings.json"))
    people = {entry["content"]["name"] for entry in opened if entry["content"]["kind"] == "person"}
    assert people == {"ann"}
    bound = [record for record in records(site.home.audit) if "commitment" in record.fields]
    assert len(bound) > len(opened)
