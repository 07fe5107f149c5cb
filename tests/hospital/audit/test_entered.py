"""What was typed into registry, roster, database or openings by hand decides nothing, whoever signs in as whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import base_user, get_user_model, models
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group

from datasites.hospital.audit.bindings import agreement_content, is_bound
from datasites.hospital.audit.entered import EntryRefused, pinned_by_hand, tell
from datasites.hospital.audit.log import head_file
from datasites.hospital.budget.population import accepted_delta
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.compliance import decide
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.doctor import examine
from datasites.hospital.models import Case, PartyProposal, Proposal
from datasites.hospital.people import agreements as entering
from datasites.hospital.people.accounts import (
    FIRST_ADMIN,
    PersonError,
    WrongPassword,
    add_person,
    find,
    identify,
    set_password,
)
from datasites.hospital.people.agreements import confirm_agreement, enter_agreements, terminate_agreement
from datasites.hospital.people.invitations import accept, enter_first_admin, enter_person
from datasites.hospital.people.roster import pin_party, propose_party, revoke_party, withdraw_party
from datasites.hospital.proposals.two_people import confirm, propose_delta, withdraw
from datasites.study.audit_chain import records
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster
from policies.registry import Agreement, RegistryFile
from tests.agreements import agreements
from tests.hospital.conftest import HEART
from tests.hospital.desk import PASSWORD, Desk, by_hand
from tests.kills import Killed, kill_after, kill_before
from tests.study.entries import stranger

DUA = """
[[agreement]]
id = "dua"
kind = "dua"
parties = ["Cleveland", "University"]
purposes = ["{purpose}"]
features = {features}
effective = 2026-01-01
expires = 2099-12-31
document = "{document}"
"""
FEATURES = [f.name for f in StudyPackage.read(HEART / "study").data_model.features]


def enter(at: Desk, text: str, by: str = "ann") -> list[tuple[str, int]]:
    file = at.site.home.root / "agreements.toml"
    file.write_text(text)
    return enter_agreements(at.site, at.login(by), file)


def enter_dua(at: Desk, purpose: str = "cardiology-research") -> None:
    """One that leaves out what the study predicts, so that it denies."""
    text = DUA.format(purpose=purpose, features=json.dumps(FEATURES), document="cd" * 32)
    for id, version in enter(at, text):
        confirm_agreement(at.site, at.login("bob"), id, version)


def typed(at: Desk, id: str, version: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Edit the registry's file: one version becomes what `change` makes of it, or is taken out for nothing."""
    held = json.loads(at.site.home.registry.read_bytes())
    found = [one for one in held["agreements"] if (one["terms"]["id"], one["version"]) == (id, version)]
    rest = [one for one in held["agreements"] if one not in found]
    held["agreements"] = sorted(
        rest + [new for one in found if (new := change(one))], key=lambda one: (one["terms"]["id"], one["version"])
    )
    at.site.home.registry.write_text(json.dumps(held, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def allowed(at: Desk) -> bool:
    return decide(at.site, open_case(at.site.home, at.row), "intake").allowed


def held(at: Desk, id: str) -> Agreement:
    return RegistryFile(at.site.home.registry, "Cleveland").load().latest(id)


def last(at: Desk, kind: str) -> int:
    return max(record.seq for record in records(at.site.home.audit) if record.kind == kind)


# -- agreements: ends --------------------------------------------------------------------------------------------------


def test_an_end_that_was_typed_into_the_registry_takes_no_agreement_away(desk: Desk) -> None:
    desk.agree()
    enter_dua(desk)
    assert not allowed(desk)
    for day in ("2026-01-02", "2099-12-30"):
        typed(desk, "dua", 1, lambda one, day=day: one | {"terminated_by": "ann", "terminated_on": day})  # type: ignore[misc]
        assert by_hand(desk.site) == ["dua version 1 has an end that nobody entered, according to the log"]
        assert not allowed(desk)
    terminate_agreement(desk.site, desk.login("ann"), "dua")
    assert by_hand(desk.site) == []


def test_a_version_that_was_typed_in_takes_the_place_of_none(desk: Desk) -> None:
    desk.agree()
    enter_dua(desk)
    ended = {"version": 2, "terminated_by": "ann", "terminated_on": "2026-01-02"}
    typed(desk, "dua", 1, lambda one: one | {"version": 1})
    text = json.loads(desk.site.home.registry.read_bytes())
    (one,) = (a for a in text["agreements"] if a["terms"]["id"] == "dua")
    text["agreements"].insert(text["agreements"].index(one) + 1, one | ended)
    desk.site.home.registry.write_text(json.dumps(text, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    words = ["dua version 2 was never entered, according to the log"]
    assert by_hand(desk.site) == words
    assert not allowed(desk)
    terminate_agreement(desk.site, desk.login("ann"), "dua")
    assert by_hand(desk.site) == words
    enter_dua(desk, "stroke-research")  # what two people enter and confirm replaces what was typed
    assert by_hand(desk.site) == []
    assert allowed(desk)


@pytest.mark.parametrize("how", ["taken out", "changed"])
def test_what_ended_is_not_taken_out_or_changed_so_that_it_narrows_no_more(desk: Desk, how: str) -> None:
    desk.agree()
    enter_dua(desk)
    terminate_agreement(desk.site, desk.login("ann"), "dua")
    assert not allowed(desk)
    assert by_hand(desk.site) == []

    def another(one: dict[str, Any]) -> dict[str, Any]:
        return {} if how == "taken out" else one | {"terms": one["terms"] | {"purposes": ["stroke-research"]}}

    typed(desk, "dua", 1, another)
    (words,) = by_hand(desk.site)
    assert ("is not there" if how == "taken out" else "is not what record") in words
    assert not allowed(desk)


def test_one_person_ends_an_agreement_and_permits_nothing_by_it(desk: Desk) -> None:
    desk.agree()
    assert allowed(desk)
    enter_dua(desk)
    assert not allowed(desk)
    terminate_agreement(desk.site, desk.login("ann"), "dua")
    decided = decide(desk.site, open_case(desk.site.home, desk.row), "intake")
    assert decided.controls == ("purpose",)
    assert "dua version 1 was terminated on" in decided.summary
    enter_dua(desk, "stroke-research")
    assert allowed(desk)


def test_an_end_that_a_kill_left_in_the_log_alone_denies_until_it_is_entered_again(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("policies.registry.replace_durably", killed)
        with pytest.raises(KeyboardInterrupt):
            terminate_agreement(desk.site, desk.login("ann"), "irb")
    assert by_hand(desk.site) == [f"irb version 1 was ended by record {last(desk, 'agreement_terminated')} of the log"]
    assert not allowed(desk)
    terminate_agreement(desk.site, desk.login("ann"), "irb")
    assert by_hand(desk.site) == []


# -- agreements: two people --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [True, False], ids=["refused", "confirmed by a datasite that does not look"])
def test_one_person_alone_brings_no_agreement_into_force(
    desk: Desk,
    looks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bob types a version into the file as ann's, and confirms it himself."""
    desk.agree(transport="backup")
    text = json.loads(desk.site.home.registry.read_bytes())
    (one,) = (a for a in text["agreements"] if a["terms"]["id"] == "baa-storage")
    alone = one | {"version": 2, "entered_by": "ann", "confirmed_by": None, "confirmed_on": None}
    alone["terms"] = one["terms"] | {"services": ["transport"]}
    text["agreements"].insert(text["agreements"].index(one) + 1, alone)
    desk.site.home.registry.write_text(json.dumps(text, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    if looks:
        with pytest.raises(
            EntryRefused, match="version 2: was never entered, according to the audit log; restore the correct"
        ):
            confirm_agreement(desk.site, desk.login("bob"), "baa-storage", 2)
        assert by_hand(desk.site) == []
    else:
        monkeypatch.setattr(entering, "require_entered", lambda *_: None)
        confirm_agreement(desk.site, desk.login("bob"), "baa-storage", 2)
        (words,) = by_hand(desk.site)
        assert words.startswith("baa-storage version 2 was entered by nobody but the person who confirmed it")
    assert not allowed(desk)


@pytest.mark.parametrize("what", ["services", "who entered it"])
def test_who_confirms_confirms_what_was_entered(desk: Desk, what: str) -> None:
    """The file is edited between the entry and its confirmation by number; or who confirms made the entry."""
    desk.agree(transport="backup")
    by = "ann" if what == "services" else "bob"
    assert enter(desk, agreements("Cleveland", [*FEATURES, "num"], transport="archive"), by)[0] == ("baa-storage", 2)

    def other(one: dict[str, Any]) -> dict[str, Any]:
        return one | (
            {"terms": one["terms"] | {"services": ["transport"]}} if what == "services" else {"entered_by": "ann"}
        )

    typed(desk, "baa-storage", 2, other)
    words = "is not what was entered by record" if by == "ann" else "bob entered it"
    with pytest.raises(EntryRefused, match=words):
        confirm_agreement(desk.site, desk.login("bob"), "baa-storage", 2)
    assert not allowed(desk)


def test_a_confirmation_that_was_killed_is_given_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = enter(desk, agreements("Cleveland", [*FEATURES, "num"]))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("policies.registry.replace_durably", killed)
        with pytest.raises(KeyboardInterrupt):
            confirm_agreement(desk.site, desk.login("bob"), *first)
    assert by_hand(desk.site) != []
    confirm_agreement(desk.site, desk.login("bob"), *first)
    assert by_hand(desk.site) == []


def test_an_opening_that_was_edited_opens_nothing(desk: Desk) -> None:
    desk.agree(transport="backup")
    terms = {"services": ["transport"]}
    typed(desk, "baa-storage", 1, lambda one: one | {"terms": one["terms"] | terms})
    content = agreement_content(held(desk, "baa-storage"))
    mine = [r.fields for r in records(desk.site.home.audit) if r.fields.get("agreement") == "baa-storage"]
    for commitment in (fields["commitment"] for fields in mine):
        path = desk.site.home.bindings / f"{commitment}.json"
        opening = json.loads(path.read_bytes())
        assert is_bound(desk.site.home, commitment, opening["content"])
        for edited in ({**opening, "content": content}, {**opening, "salt": "zz"}, {"content": content}, []):
            path.write_text(json.dumps(edited))
            assert not is_bound(desk.site.home, commitment, content)
    assert by_hand(desk.site) != []
    assert not allowed(desk)


# -- parties -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["who proposed it", "what was proposed", "never proposed", "withdrawn", "revoked"])
def test_one_person_alone_brings_no_party_in(desk: Desk, what: str) -> None:
    """Of the proposals, which lie in the database, any field is edited; what the log says of them counts."""
    site, entry = desk.site, stranger()
    if what == "never proposed":
        row = PartyProposal.objects.create(email=entry.email, entry=entry.model_dump(mode="json"), proposed_by="ann")
        words = "was never entered"
    else:
        row = propose_party(site, desk.login("bob" if what == "who proposed it" else "ann"), entry.model_dump_json())
        words = "bob entered it by record"
    change: dict[str, Any] = {"proposed_by": "ann"}
    if what == "what was proposed":
        words = "is not what was entered by record"
        change["entry"] = entry.model_copy(update={"organisation": "Centre"}).model_dump(mode="json")
    if what == "withdrawn":
        withdraw_party(site, desk.login("cyd"), row.pk)
        words, change["outcome"] = "was never entered", ""
    if what == "revoked":
        pin_party(site, desk.login("bob"), row.pk, entry.fingerprint)
        older = site.home.roster.read_bytes()
        revoke_party(site, desk.login("ann"), entry.email, "lost")
        others = [one for one in Roster.parse(older).entries if one.email != entry.email]
        Roster(entries=tuple(others)).save(site.home.roster)
        words, change["outcome"] = "was never entered", ""
    PartyProposal.objects.filter(pk=row.pk).update(**change)
    with pytest.raises(EntryRefused, match=words):
        pin_party(site, desk.login("bob"), row.pk, entry.fingerprint)
    assert entry.email not in {one.email for one in Roster.load(site.home.roster).entries}


def test_a_party_whose_pinning_was_interrupted_can_be_withdrawn_for_good(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed once the log says that it is pinned: by hand it comes into the roster, and counts for nothing."""
    site, entry = desk.site, stranger("south")
    row = propose_party(site, desk.login("ann"), entry.model_dump_json())
    before = site.home.roster.read_bytes()
    with monkeypatch.context() as patch:
        kill_before(Roster, "save")(patch)
        with pytest.raises(Killed):
            pin_party(site, desk.login("bob"), row.pk, entry.fingerprint)
    assert not pinned_by_hand(site.home, [entry]), "as the log says, two people pinned it"
    withdraw_party(site, desk.login("cyd"), row.pk)
    try:
        Roster.load(site.home.roster).pin(entry).save(site.home.roster)
        assert pinned_by_hand(site.home, [entry]), "typed into the roster's file"
    finally:
        site.home.roster.write_bytes(before)
    again = propose_party(site, desk.login("ann"), entry.model_dump_json())
    pin_party(site, desk.login("bob"), again.pk, entry.fingerprint)
    assert not pinned_by_hand(site.home, Roster.load(site.home.roster).entries[-1:])
    revoke_party(site, desk.login("ann"), entry.email, "the test is over")


def test_a_party_that_is_in_the_roster_is_not_withdrawn_but_pinned_again_or_revoked(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between the roster and the database."""
    site, entry = desk.site, stranger("west")
    row = propose_party(site, desk.login("ann"), entry.model_dump_json())
    with monkeypatch.context() as patch:
        kill_after(Roster, "save")(patch)
        with pytest.raises(Killed):
            pin_party(site, desk.login("bob"), row.pk, entry.fingerprint)
    with pytest.raises(ReviewError, match="pinned with this key already"):
        withdraw_party(site, desk.login("cyd"), row.pk)
    pin_party(site, desk.login("bob"), row.pk, entry.fingerprint)
    assert PartyProposal.objects.get(pk=row.pk).outcome == "pinned"
    revoke_party(site, desk.login("ann"), entry.email, "the test is over")


@pytest.mark.parametrize("what", ["who entered it", "what was entered", "in which role"])
def test_one_person_alone_takes_no_risk_of_a_larger_delta(desk: Desk, what: str) -> None:
    name = "bob" if what == "who entered it" else "ann"
    row = propose_delta(desk.site, desk.login(name), "heart", 1e-4, "a small clinic")
    edited: dict[str, Any]
    edited, words, second = {
        "who entered it": ({"proposed_by": "ann", "proposed_role": "steward"}, "a privacy_officer entered it", "bob"),
        "what was entered": ({"details": {"delta": 1e-2}}, "is not what was entered by record", "bob"),
        "in which role": ({"proposed_role": "privacy_officer"}, "a steward entered it by record", "cyd"),
    }[what]
    Proposal.objects.filter(pk=row.pk).update(**edited)
    with pytest.raises(EntryRefused, match=words):
        confirm(desk.site, desk.login(second), row.pk)
    assert accepted_delta("heart") == 0
    withdraw(desk.site, desk.login("ann"), row.pk)
    again = propose_delta(desk.site, desk.login("ann"), "heart", 1e-4, "a small clinic")
    confirm(desk.site, desk.login("bob"), again.pk)
    assert accepted_delta("heart") == 1e-4


def test_what_was_confirmed_is_not_confirmed_again_in_another_name(desk: Desk) -> None:
    row = propose_delta(desk.site, desk.login("ann"), "heart", 1e-4, "a small clinic")
    Proposal.objects.filter(pk=row.pk).update(proposed_by="cyd", reason="typed by hand")
    confirm(desk.site, desk.login("bob"), row.pk)
    told = [r.fields for r in records(desk.site.home.audit) if r.kind == "delta_accepted"][-1]
    assert (told["entered_by"], told["confirmed_by"], told["reason"]) == ("ann", "bob", "a small clinic")
    Proposal.objects.filter(pk=row.pk).update(outcome="", decided_by="")
    with pytest.raises(EntryRefused, match="never entered or is decided already"):
        confirm(desk.site, desk.login("bob"), row.pk)


# -- people ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dee", "ann"])
def test_a_role_that_was_edited_to_admin_counts_for_nothing(desk: Desk, name: str) -> None:
    somebody = get_user_model().objects.get(username=name)
    somebody.groups.set([Group.objects.get_or_create(name="admin")[0]])
    words = f"{name} is not the person that record"
    with pytest.raises(PersonError, match=words):
        desk.login(name)
    (check,) = examine(desk.site, ["people"])
    assert (check.state, words in check.message) == ("bad", True)


def test_the_first_admin_is_logged_and_their_address_can_not_be_edited(desk: Desk) -> None:
    accept(desk.site, enter_first_admin(desk.site).code, PASSWORD)
    assert identify(FIRST_ADMIN, PASSWORD).role == "admin"
    # Whoever signs in at the organisation's provider is found by their address.
    get_user_model().objects.filter(username=FIRST_ADMIN).update(email="dee@elsewhere.example.org")
    with pytest.raises(PersonError, match="admin is not the person that record"):
        identify(FIRST_ADMIN, PASSWORD)


def test_an_admin_of_a_version_that_did_not_log_them_is_entered_again_by_the_command_line(desk: Desk) -> None:
    add_person(FIRST_ADMIN, "admin")
    set_password(find(FIRST_ADMIN), PASSWORD)
    words = "admin was never entered, according to the log; .* `datasites person add admin --role admin --home"
    with pytest.raises(PersonError, match=words):
        desk.login(FIRST_ADMIN)
    enter_person(desk.site, "eve", "admin", "eve@cleveland.example.org")
    with pytest.raises(PersonError, match="already entered, but not in the audit log; .*datasites person add admin"):
        enter_person(desk.site, FIRST_ADMIN, "admin", by="eve")
    issued = enter_person(desk.site, FIRST_ADMIN, "admin")
    with pytest.raises(WrongPassword):
        desk.login(FIRST_ADMIN)  # it may be whoever edited the database who knows that password
    assert issued is not None
    accept(desk.site, issued.code, "another quite long phrase")
    assert identify(FIRST_ADMIN, "another quite long phrase").role == "admin"


def test_a_new_persons_password_is_hashed_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(password: str) -> str:
        hashed.append(password)
        return make_password(password)

    for module in (base_user, models):
        monkeypatch.setattr(module, "make_password", counted)
    issued = enter_person(desk.site, "gil", "auditor", by="eve")
    assert issued is not None
    accept(desk.site, issued.code, PASSWORD)
    assert [password for password in hashed if password is not None] == [PASSWORD]


@pytest.mark.parametrize("by", ["eve", ""], ids=["an admin", "the command line"])
def test_who_is_entered_already_is_not_entered_again_with_another_password(desk: Desk, by: str) -> None:
    accept(desk.site, enter_first_admin(desk.site).code, PASSWORD)
    for name, role, email in ((FIRST_ADMIN, "admin", ""), ("ann", "steward", "ann@cleveland.example.org")):
        with pytest.raises(PersonError, match="already entered; choose another name"):
            enter_person(desk.site, name, role, email, by=by)
    assert desk.login(FIRST_ADMIN)
    assert desk.login("ann")


def test_an_approval_counts_for_the_address_under_which_it_was_given(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    assert desk.approve("bob").state == Case.State.APPROVED
    get_user_model().objects.filter(username="ann").update(email="x@cleveland.example.org")
    decided = decide(desk.site, open_case(desk.site.home, desk.row), "run_round")
    assert decided.facts is not None
    assert (decided.allowed, decided.facts.approvals) == (False, None)


def test_a_log_that_was_lost_lets_those_of_the_database_settle_it(desk: Desk) -> None:
    for path in (desk.site.home.audit, head_file(desk.site.home.audit)):
        path.unlink()
    assert tell(desk.site.home).added == {}
    assert [desk.login(name).role for name in ("ann", "dee")] == ["steward", "auditor"]
