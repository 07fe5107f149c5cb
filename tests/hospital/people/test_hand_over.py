"""A researcher's new key is pinned where the pinned one signs for it, as the log knows, and studies go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasites.hospital.audit.entered import pinned_by_hand
from datasites.hospital.people.accounts import ReviewError
from datasites.hospital.people.roster import accept_hand_over, pin_compared, propose_party, revoke_party
from datasites.study import letters
from datasites.study.audit_chain import records
from datasites.study.errors import InputError
from datasites.study.identity import Identity, IdentityError
from datasites.study.roster import HandOver, Roster, RosterEntry
from tests.hospital.desk import Desk
from tests.hospital.running import RESEARCHER, Running, require_sat_out
from tests.kills import Killed, kill_after, kill_before
from tests.study.entries import entry_of

EMAIL = "office@second-university.example.org"


class Party:
    """A researcher whose entry is pinned here, and what it signs."""

    def __init__(self, desk: Desk, role: str = "researcher") -> None:
        self.site = desk.site
        self.keys = [Identity.generate(EMAIL)]
        self.entry = entry_of(self.keys[0], role, organisation="Second University", syft_fingerprint="ab" * 20)
        pin_compared(self.site, self.entry)

    def change(self, signed_by: Identity | None = None, **changed: Any) -> HandOver:
        """To a new key, which is remembered."""
        self.keys.append(Identity.generate(EMAIL))
        old = signed_by or self.keys[0]
        replaced = self.entry.model_copy(update={"public_key": old.public_key})
        entry = self.entry.model_copy(update={"public_key": self.keys[-1].public_key, **changed})
        return HandOver.sign(old, self.keys[-1], replaced, entry)

    @property
    def pinned(self) -> RosterEntry:
        return Roster.load(self.site.home.roster).get(EMAIL)

    @property
    def counts(self) -> bool:
        """Whether anything may rest on what is pinned."""
        return pinned_by_hand(self.site.home, [self.pinned]) == []


@pytest.fixture
def party(desk: Desk) -> Iterator[Party]:
    before = desk.site.home.roster.read_bytes()
    yield Party(desk)
    desk.site.home.roster.write_bytes(before)


def test_one_person_pins_the_new_key_and_the_log_binds_it(desk: Desk, party: Party) -> None:
    change = party.change()
    assert accept_hand_over(desk.site, desk.login("bob"), change) == change.entry
    assert (party.pinned, party.counts) == (change.entry, True)
    assert pinned_by_hand(desk.site.home, [party.entry]), "nothing rests on the one before any more"
    *_, record = records(desk.site.home.audit)
    told = {name: record.fields[name] for name in ("email", "fingerprint", "person", "handed_over_by")}
    assert (record.kind, told) == (
        "pinned",
        {
            "email": EMAIL,
            "fingerprint": change.entry.fingerprint,
            "person": "bob",
            "handed_over_by": party.entry.fingerprint,
        },
    )
    with pytest.raises(IdentityError, match="another entry than the pinned one"):
        accept_hand_over(desk.site, desk.login("bob"), change)
    revoke_party(desk.site, desk.login("ann"), EMAIL, "lost")
    assert {key.public_key for key in party.keys} <= set(Roster.load(desk.site.home.roster).revoked)


@pytest.mark.parametrize("name", ["dee"])
def test_who_does_not_keep_the_roster_accepts_nothing(desk: Desk, party: Party, name: str) -> None:
    with pytest.raises(ReviewError, match="the roster is kept by"):
        accept_hand_over(desk.site, desk.login(name), party.change())
    assert party.pinned == party.entry


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"organisation": "Cleveland"}, "organisation can't change"),  # whose agreements would count
        ({"role": "hospital"}, "can't change"),
        ({"email": "datasite@va.example.org"}, "another entry than the pinned one"),
        ({"email": "nobody@x.example.org"}, "not pinned"),
        ({"syft_fingerprint": ""}, "no syft fingerprint"),
    ],
)
def test_a_hand_over_changes_a_key_and_not_who_somebody_is(
    desk: Desk, party: Party, changed: dict[str, str], rule: str
) -> None:
    last = desk.site.audit.head()
    with pytest.raises((IdentityError, InputError), match=rule):
        accept_hand_over(desk.site, desk.login("bob"), party.change(**changed))
    assert (party.pinned, party.counts, desk.site.audit.head()) == (party.entry, True, last)


def test_a_hand_over_that_another_key_signed_is_none(desk: Desk, party: Party) -> None:
    thief = Identity.generate(EMAIL)
    stolen = party.change().model_copy(update={"old_signature": "ab" * 64})
    for change in (party.change(thief), stolen):
        with pytest.raises(IdentityError):
            accept_hand_over(desk.site, desk.login("bob"), change)
    assert party.pinned == party.entry


def test_a_hospitals_key_is_not_handed_over(desk: Desk, party: Party) -> None:
    revoke_party(desk.site, desk.login("ann"), EMAIL, "for this test")
    hospital = Party(desk, "hospital")
    with pytest.raises(IdentityError, match="a hospital's key is not handed over"):
        accept_hand_over(desk.site, desk.login("bob"), hospital.change())


def test_who_may_write_the_roster_file_alone_hands_nothing_over(desk: Desk, party: Party) -> None:
    """Under the address lies another entry, whose key signs; and one that was revoked is put back."""
    thief, home = Identity.generate(EMAIL), desk.site.home
    typed = party.entry.model_copy(update={"public_key": thief.public_key})
    whole = Roster.load(home.roster)
    Roster(entries=(*whole.without(EMAIL).entries, typed)).save(home.roster)
    with pytest.raises(IdentityError, match="is not the entry that record"):
        accept_hand_over(desk.site, desk.login("bob"), party.change(thief))
    whole.save(home.roster)
    revoke_party(desk.site, desk.login("ann"), EMAIL, "stolen")
    whole.save(home.roster)
    with pytest.raises(IdentityError, match="was revoked by record"):
        accept_hand_over(desk.site, desk.login("bob"), party.change())
    assert not party.counts


@pytest.mark.parametrize("kill", [kill_before, kill_after])
def test_killed_in_between_it_is_accepted_again_and_nobody_is_trusted_meanwhile(
    desk: Desk,
    party: Party,
    kill: Callable[[object, str], Callable[[Any], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = party.change()
    with monkeypatch.context() as patch:
        kill(Roster, "save")(patch)
        with pytest.raises(Killed):
            accept_hand_over(desk.site, desk.login("bob"), change)
    if kill is kill_before:
        assert (party.pinned, party.counts) == (party.entry, False)
        accept_hand_over(desk.site, desk.login("bob"), change)
    assert (party.pinned, party.counts) == (change.entry, True)
    pins = [r for r in records(desk.site.home.audit) if r.kind == "pinned" and r.fields["email"] == EMAIL]
    assert len(pins) == 2


def test_killed_and_then_revoked_it_stays_revoked(desk: Desk, party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    change, older = party.change(), desk.site.home.roster.read_bytes()
    with monkeypatch.context() as patch:
        kill_before(Roster, "save")(patch)
        with pytest.raises(Killed):
            accept_hand_over(desk.site, desk.login("bob"), change)
    revoke_party(desk.site, desk.login("ann"), EMAIL, "stolen")
    desk.site.home.roster.write_bytes(older)
    with pytest.raises(IdentityError, match="was revoked by record"):
        accept_hand_over(desk.site, desk.login("bob"), change)


def test_no_roster_file_brings_a_key_back_that_was_handed_over(desk: Desk, party: Party) -> None:
    """By its owner, who signs, or by a thief of the old key who has taken the new one's word for it."""
    home = desk.site.home
    change = party.change()
    accept_hand_over(desk.site, desk.login("bob"), change)
    back = HandOver.sign(party.keys[1], party.keys[0], change.entry, party.entry)
    with pytest.raises(IdentityError, match="was revoked"):
        accept_hand_over(desk.site, desk.login("bob"), back)
    Roster(entries=Roster.load(home.roster).entries).save(home.roster)  # what was revoked is left out
    last = desk.site.audit.head()
    with pytest.raises(IdentityError, match="was revoked or handed over, as the log says"):
        accept_hand_over(desk.site, desk.login("bob"), back)
    assert (party.pinned, party.counts, desk.site.audit.head()) == (change.entry, True, last)


@pytest.mark.parametrize("by", ["two people", "the shell"])
@pytest.mark.parametrize("killed", [False, True], ids=["the file forgets", "the file was never told"])
def test_no_roster_file_brings_a_key_back_that_was_revoked(
    desk: Desk, party: Party, monkeypatch: pytest.MonkeyPatch, by: str, killed: bool
) -> None:
    """Nor one that was handed over to as the process was killed, and that a thief holds: revoking ends it as well."""
    home, change = desk.site.home, party.change()
    with monkeypatch.context() as patch:
        if killed:
            kill_before(Roster, "save")(patch)
            with pytest.raises(Killed):
                accept_hand_over(desk.site, desk.login("bob"), change)
        else:
            accept_hand_over(desk.site, desk.login("bob"), change)
    revoke_party(desk.site, desk.login("ann"), EMAIL, "stolen")
    assert (change.entry.public_key in Roster.load(home.roster).revoked) is not killed
    Roster(entries=Roster.load(home.roster).entries).save(home.roster)
    again: dict[str, Callable[[], object]] = {
        "the shell": lambda: pin_compared(desk.site, change.entry),
        "two people": lambda: propose_party(desk.site, desk.login("ann"), change.entry.canonical().decode()),
    }
    with pytest.raises(IdentityError, match="was revoked or handed over, as the log says"):
        again[by]()
    assert pinned_by_hand(home, [change.entry])
    following = party.change().entry
    pin_compared(desk.site, following)
    assert (party.pinned, party.counts) == (following, True)


def test_a_running_study_goes_on_by_a_new_epoch_once_the_key_was_handed_over(running: Running) -> None:
    running.set_up()
    old, new, home = running.keys[RESEARCHER], Identity.generate(RESEARCHER), running.site.home
    before = running.roster.get(RESEARCHER)
    after = before.model_copy(update={"public_key": new.public_key})
    accept_hand_over(running.site, running.desk.login("ann"), HandOver.sign(old, new, before, after))
    running.open(1)
    running.steps()
    require_sat_out(running, 1)
    assert not running.logged("charged")
    running.keys[RESEARCHER] = new
    running.roster = Roster.load(home.roster)
    running.set_up(epoch=1, first_round=2)
    running.open(2)
    running.steps()
    assert running.heard(2, letters.MASKED)
