"""Agreements count only when two people stand for them, and only while they are in force."""

import datetime
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasites.study.identity import identity_key
from datasites.study.manifest import ServiceEntry
from policies.registry import Agreement, AgreementTerms, Registry, RegistryError, RegistryFile, read_agreements
from policies.ruleset import SHIPPED
from tests.policies.facts_of import DOCUMENT, HOSPITAL, OFFICER, SERVICES, baa, day, dua, irb, registry
from tests.policies.registry_toml import to_toml

CLERK = "clerk@general.example"
ON = day("2026-01-02")
EMPTY = Registry(organisation=HOSPITAL)


def covers(book: Registry, on: str, service: str = "transport", party: str = "Centre") -> bool:
    return book.covers(service, party, day(on)) is not None


def test_an_entry_counts_only_after_a_second_person_confirmed_it() -> None:
    entered = EMPTY.enter(baa(), CLERK, ON)
    assert not covers(entered, "2026-06-01")
    assert [a.terms.id for a in entered.unconfirmed()] == ["baa-centre"]
    for same in (CLERK, CLERK.upper()):
        with pytest.raises(RegistryError, match="can't confirm it; ask a second person"):
            entered.confirm("baa-centre", 1, same, ON)
    confirmed = entered.confirm("baa-centre", 1, OFFICER, ON)
    assert covers(confirmed, "2026-06-01")
    assert not confirmed.unconfirmed()


def test_a_stored_agreement_can_not_claim_its_enterer_as_second_person() -> None:
    with pytest.raises(ValidationError, match="can't confirm it"):
        Agreement(terms=baa(), version=1, entered_by=CLERK, entered_on=ON, confirmed_by=CLERK.title(), confirmed_on=ON)
    with pytest.raises(ValidationError, match="who confirmed and when"):
        Agreement(terms=baa(), version=1, entered_by=CLERK, entered_on=ON, confirmed_by=OFFICER)


@pytest.mark.parametrize(
    ("on", "in_force"),
    [("2025-12-31", False), ("2026-01-01", False), ("2026-01-02", True), ("2026-12-31", True), ("2027-01-01", False)],
)
def test_in_force_from_confirmation_to_the_last_day(on: str, in_force: bool) -> None:
    # It takes effect on 1 January but was confirmed on the 2nd: on the 1st nobody had checked it.
    assert covers(registry(baa()), on) is in_force


def test_a_new_version_replaces_the_old_one_only_when_confirmed() -> None:
    book = registry(baa()).enter(baa(services=("aggregation",)), CLERK, day("2026-03-01"))
    assert covers(book, "2026-04-01")
    with pytest.raises(RegistryError, match="is at version 2, not 1"):
        book.confirm("baa-centre", 1, OFFICER, day("2026-03-02"))
    book = book.confirm("baa-centre", 2, OFFICER, day("2026-03-02"))
    assert covers(book, "2026-03-01")
    assert not covers(book, "2026-04-01")
    assert covers(book, "2026-04-01", "aggregation")


def test_terminating_needs_one_person_and_takes_effect_that_day() -> None:
    book = registry(baa()).terminate("baa-centre", CLERK, day("2026-05-01"))
    assert covers(book, "2026-04-30")
    assert not covers(book, "2026-05-01")
    later = book.terminate("baa-centre", CLERK, day("2026-08-01"))
    assert not covers(later, "2026-06-01")
    again = later.enter(baa(), CLERK, day("2026-06-01")).confirm("baa-centre", 2, OFFICER, day("2026-06-02"))
    assert covers(again, "2026-06-02")


def test_only_agreements_of_this_hospital_with_that_party_for_that_service_count() -> None:
    assert not covers(registry(baa(parties=("Other Hospital", "Centre"))), "2026-06-01")
    assert not covers(registry(baa()), "2026-06-01", party="Centre Ltd")
    assert not covers(registry(baa()), "2026-06-01", service="storage")
    # A DUA or an IRB approval that names a party and a service is still no BAA.
    assert not covers(registry(dua(parties=(HOSPITAL, "Centre"), services=("transport",))), "2026-06-01")


def test_covered_includes_what_the_hospital_runs_itself() -> None:
    own = ServiceEntry(kind="storage", organisation=HOSPITAL)
    assert registry(baa()).covered((*SERVICES, own), day("2026-06-01")) == (*SERVICES, own)
    assert EMPTY.covered((*SERVICES, own), day("2026-06-01")) == (own,)


def test_permitted_features_are_those_of_the_approval_and_of_a_data_use_agreement() -> None:
    on = day("2026-06-01")
    assert registry(irb()).permitted_features("IRB-17", "heart-risk", on) == (
        "age",
        "chol",
        "heart_disease",
        "sex",
        "thalach",
    )
    both = registry(irb(), dua())
    assert both.permitted_features("IRB-17", "heart-risk", on) == ("age", "chol", "heart_disease", "sex")
    assert both.permitted_features("IRB-17", "billing", on) == ()
    assert registry(irb()).permitted_features("IRB-18", "heart-risk", on) == ()
    assert both.permitted_features("IRB-17", "heart-risk", day("2028-01-01")) == ()


def test_a_data_use_agreement_that_is_over_permits_nothing_until_people_replace_it() -> None:
    on, whole = day("2026-06-01"), registry(irb()).permitted_features("IRB-17", "heart-risk", day("2026-06-01"))
    ended = registry(irb(), dua(features=("age",))).terminate("dua-heart", CLERK, on)
    expired = registry(irb(), dua(features=("age",), expires=day("2026-05-31")))
    for over in (ended, expired):
        assert over.permitted_features("IRB-17", "heart-risk", day("2026-05-31")) == ("age",)
        assert over.permitted_features("IRB-17", "heart-risk", on) == ()
        assert [a.terms.id for a in over.use_agreements("heart-risk", on)] == ["dua-heart"]
        waiting = over.enter(dua(purposes=("stroke-risk",)), CLERK, on)
        assert waiting.permitted_features("IRB-17", "heart-risk", on) == ()
        assert waiting.confirm("dua-heart", 2, OFFICER, on).permitted_features("IRB-17", "heart-risk", on) == whole
    another = registry(irb(), dua(features=("age", "sex")), dua(id="dua-2", features=("age",)))
    assert another.terminate("dua-heart", CLERK, on).permitted_features("IRB-17", "heart-risk", on) == ("age",)


DAYS = st.dates(day("2026-01-01"), day("2026-01-06"))
PURPOSES = st.sets(st.sampled_from(["heart-risk", "stroke-risk"]), min_size=1).map(tuple)
FEW = st.sets(st.sampled_from(["age", "sex", "chol"]), min_size=1).map(tuple)


@st.composite
def versions(draw: st.DrawFn) -> Registry:
    """An approval, and agreements of every kind, with versions that wait, count, follow one another, and are over."""
    approval = irb(id="irb-0", purposes=("heart-risk", "stroke-risk"))
    book = registry(approval, on="2026-01-01")
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted((draw(DAYS), draw(DAYS)))
        kind: Any = draw(st.sampled_from(["dua", "dua", "baa", "irb"]))
        of = {"baa": baa, "irb": irb, "dua": dua}[kind]
        said: dict[str, Any] = {"effective": first, "expires": last, "id": f"{kind}-{draw(st.integers(1, 2))}"}
        said |= {} if kind == "baa" else {"purposes": draw(PURPOSES), "features": draw(FEW)}
        try:
            book = book.enter(of(**said), CLERK, draw(DAYS))
        except RegistryError:
            continue  # stands like this already
        if draw(st.booleans()):
            book = book.confirm(said["id"], book.latest(said["id"]).version, OFFICER, draw(DAYS))
        if draw(st.booleans()):
            book = book.terminate(said["id"], CLERK, draw(DAYS))
    return book


@settings(deadline=None, max_examples=300)
@given(versions(), DAYS, st.data())
def test_an_end_by_one_person_only_narrows(book: Registry, on: Any, data: st.DataObject) -> None:
    id = data.draw(st.sampled_from(sorted({a.terms.id for a in book.agreements})))
    ended = book.terminate(id, CLERK, data.draw(DAYS))
    for purpose in ("heart-risk", "stroke-risk"):
        before = book.permitted_features("IRB-17", purpose, on)
        approved = ("IRB-17", purpose) in ended.irb_approvals(on)
        assert not approved or set(ended.permitted_features("IRB-17", purpose, on)) <= set(before)
    assert set(ended.irb_approvals(on)) <= set(book.irb_approvals(on))
    assert set(ended.covered(SERVICES, on)) <= set(book.covered(SERVICES, on))


def test_a_renewal_confirmed_early_replaces_on_its_first_day() -> None:
    renewal = baa(services=("transport",), effective=day("2027-01-01"), expires=day("2027-12-31"))
    book = registry(baa()).enter(renewal, CLERK, day("2026-11-04"))
    book = book.confirm("baa-centre", 2, OFFICER, day("2026-11-05"))
    assert covers(book, "2026-11-06", "aggregation")
    assert covers(book, "2026-12-31", "aggregation")
    assert covers(book, "2027-01-01", "transport")
    assert not covers(book, "2027-01-01", "aggregation")


def test_relevant_keeps_what_explains_a_decision_and_leaves_the_rest() -> None:
    other = baa(id="baa-laundry", parties=(HOSPITAL, "Laundry"), services=("washing",))
    book = registry(baa(), irb(), dua(), other, irb(id="irb-other", reference="IRB-99"))
    kept = [a.terms.id for a in book.relevant(SERVICES, "IRB-17", "heart-risk")]
    assert kept == ["baa-centre", "dua-heart", "irb-heart"]


def test_expiry_warnings_come_soonest_first_with_days_left() -> None:
    book = registry(baa(), irb(), dua(expires=day("2028-01-01")))
    warnings = book.expiring(day("2026-12-20"), within_days=60)
    assert [(w.id, w.days_left) for w in warnings] == [("baa-centre", 11), ("irb-heart", 42)]
    assert book.expiring(day("2026-12-20"), within_days=10) == ()
    assert [w.id for w in book.expiring(day("2027-01-10"))] == ["irb-heart"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expires": day("2025-01-01")}, "expires before it takes effect"),
        ({"services": ()}, "names two parties or more, and the services"),
        ({"parties": ("General Hospital",)}, "names two parties or more"),
        ({"parties": ("General Hospital", "General Hospital")}, "names two parties or more"),
        ({"kind": "irb"}, "an IRB approval names its number"),
        ({"kind": "dua"}, "a DUA names its purposes"),
        ({"kind": "risk_acceptance", "services": ()}, "names what it accepts"),
        ({"document": "e3"}, "document"),
        ({"id": "BAA 2026"}, "id"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_incomplete_terms_are_refused_with_the_rule(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        baa(**changes)


def test_entering_the_same_terms_twice_or_another_kind_is_refused() -> None:
    book = registry(baa())
    with pytest.raises(RegistryError, match="is already registered like this"):
        book.enter(baa(), CLERK, ON)
    with pytest.raises(RegistryError, match="can't change its kind"):
        book.enter(irb(id="baa-centre"), CLERK, ON)
    with pytest.raises(RegistryError, match="no agreement 'baa-other'; known: baa-centre"):
        book.confirm("baa-other", 1, OFFICER, ON)
    with pytest.raises(RegistryError, match="was confirmed by"):
        book.confirm("baa-centre", 1, "third@general.example", ON)


# -- TOML


def test_import_never_confirms_whatever_the_text_says() -> None:
    text = to_toml(registry(baa(), irb(), dua()))
    assert f"confirmed by {OFFICER}" in text
    book = EMPTY.import_toml(text, CLERK, ON)
    assert [a.terms.id for a in book.unconfirmed()] == ["baa-centre", "dua-heart", "irb-heart"]
    assert book.in_force(day("2026-06-01")) == ()
    assert {a.entered_by for a in book.agreements} == {CLERK}
    with pytest.raises(RegistryError, match="entry 1 .*confirmed_by"):
        EMPTY.import_toml(text.replace('kind = "baa"', f'kind = "baa"\nconfirmed_by = "{OFFICER}"'), CLERK, ON)


def test_importing_again_enters_only_what_changed() -> None:
    book = registry(baa(), irb())
    assert book.import_toml(to_toml(book), CLERK, ON) == book
    changed = book.import_toml(to_toml(book).replace("2026-12-31", "2027-12-31"), CLERK, ON)
    assert [(a.terms.id, a.version) for a in changed.unconfirmed()] == [("baa-centre", 2)]


def test_the_shipped_example_reads() -> None:
    terms = read_agreements((SHIPPED.parent / "examples" / "agreements.toml").read_text())
    assert {t.kind for t in terms} == {"baa", "irb"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found none"),
        ("agreement = 3", "found none"),
        ("[[agreement]]\n[[extra]]", "found extra"),
        ("[[agreement]\n", "not valid TOML"),
        ("agreement = [1]", "entry 1 .not a table"),
        ('[[agreement]]\nid = "a"', r"entry 1 \(a\): kind"),
    ],
)
def test_a_malformed_text_names_entry_and_key(text: str, words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        EMPTY.import_toml(text, CLERK, ON)


text_values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(parties=st.lists(text_values, min_size=2, max_size=4, unique_by=identity_key), reference=text_values)
@settings(max_examples=150)
def test_toml_keeps_any_text(parties: list[str], reference: str) -> None:
    terms = baa(parties=tuple(parties), reference=reference)
    assert read_agreements(to_toml(EMPTY.enter(terms, CLERK, ON))) == (terms,)


@given(st.lists(st.tuples(st.sampled_from(["enter", "confirm", "terminate"]), st.integers(0, 9)), max_size=12))
@settings(max_examples=200)
def test_no_sequence_of_one_persons_acts_brings_anything_into_force(acts: list[tuple[str, int]]) -> None:
    book = EMPTY
    for act, shift in acts:
        on = ON + datetime.timedelta(shift)
        try:
            if act == "enter":
                book = book.enter(baa(services=("transport", f"s{shift}")), CLERK, on)
            elif act == "confirm":
                book = book.confirm("baa-centre", book.latest("baa-centre").version, CLERK, on)
            else:
                book = book.terminate("baa-centre", CLERK, on)
        except RegistryError:
            continue
    assert book.in_force(ON + datetime.timedelta(10)) == ()


# -- the file


def test_the_file_is_private_atomic_and_read_again(tmp_path: Path) -> None:
    file = RegistryFile(tmp_path / "hospital" / "registry.json", HOSPITAL)
    assert file.load() == EMPTY
    file.update(lambda book: book.enter(baa(), CLERK, ON))
    assert file.path.stat().st_mode & 0o777 == 0o600
    before = file.path.read_bytes()
    with pytest.raises(RegistryError, match="can't confirm"):
        file.update(lambda book: book.confirm("baa-centre", 1, CLERK, ON))
    assert file.path.read_bytes() == before
    other = RegistryFile(file.path, HOSPITAL)
    other.update(lambda book: book.confirm("baa-centre", 1, OFFICER, ON))
    assert covers(file.load(), "2026-06-01")
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["registry.json", "registry.json.lock"]


def test_a_damaged_foreign_or_open_file_is_refused(tmp_path: Path) -> None:
    file = RegistryFile(tmp_path / "registry.json", HOSPITAL)
    file.update(lambda book: book.enter(baa(), CLERK, ON))
    good = file.path.read_bytes()
    for damaged in (b"", good[:-1], good.replace(b"transport", b"transpor"), good + b" "):
        file.path.write_bytes(damaged)
        if damaged == good.replace(b"transport", b"transpor"):
            # Still a registry: the file is the hospital's own, what protects it is its mode and two people.
            assert file.load() != EMPTY
            continue
        with pytest.raises(RegistryError, match="restore it from a backup"):
            file.load()
    file.path.write_bytes(good)
    with pytest.raises(RegistryError, match="not of Other"):
        RegistryFile(file.path, "Other").load()
    file.path.chmod(0o666)
    with pytest.raises(RegistryError, match="lets others write it"):
        file.load()


@pytest.mark.waits
def test_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"

    def enter(number: int) -> None:
        RegistryFile(path, HOSPITAL).update(lambda book: book.enter(baa(id=f"baa-{number}"), CLERK, ON))

    threads = [threading.Thread(target=enter, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(RegistryFile(path, HOSPITAL).load().agreements) == 16


def test_a_document_hash_is_what_people_compare() -> None:
    exported = tomllib.loads(to_toml(registry(baa())))["agreement"][0]
    assert exported["document"] == DOCUMENT
    assert AgreementTerms(**exported) == baa()


def test_an_organisation_is_one_however_it_is_written() -> None:
    with pytest.raises(RegistryError, match="names one party twice"):
        EMPTY.enter(baa(parties=("Centre", "CENTRE")), CLERK, ON)
    book = registry(baa())
    assert covers(book, "2026-06-01", party="centre")
    own = ServiceEntry(kind="transport", organisation=HOSPITAL.upper())
    assert book.covered((own,), day("2026-06-01")) == (own,)
    assert book.relevant((ServiceEntry(kind="transport", organisation="CENTRE"),), "", "")
