"""A researcher changes its key: one usable key at each moment, files that others accept, and runs that go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasites.researcher import federation as module
from datasites.researcher.federation import Federation
from datasites.study.errors import InputError
from datasites.study.identity import Identity, IdentityError
from datasites.study.roster import HandOver, Roster, RosterEntry
from tests.kills import Killed
from tests.researcher.homes import EMAIL, create
from tests.researcher.hospitals import Federation as Running
from tests.study.entries import entry_of


def entry(identity: Identity, role: str, **changed: str) -> RosterEntry:
    return entry_of(identity, role, syft_fingerprint="ab" * 20, **changed)


def given(home: Path) -> tuple[RosterEntry, HandOver]:
    """What others get."""
    return (
        RosterEntry.parse((home / "roster-entry.json").read_bytes()),
        HandOver.parse((home / "hand-over.json").read_bytes()),
    )


def require_whole(federation: Federation, before: RosterEntry) -> None:
    """The new key is in force everywhere, and whoever has pinned the old one can follow."""
    home = federation.home
    told, change = given(home)
    assert told == change.entry == federation.entry == federation.roster.get(EMAIL)
    assert federation.roster == Roster.load(home / "roster.json")
    assert federation.identity.public_key == told.public_key != before.public_key
    assert Identity.load(home / "keys/institution.pem", EMAIL).public_key == told.public_key
    assert Identity.load(home / "keys/institution-before.pem", EMAIL).public_key == before.public_key
    assert Roster(entries=(before,)).hand_over(change).get(EMAIL) == told
    assert not (home / "keys/institution-next.pem").exists()


@pytest.mark.parametrize("passphrase", ["", "a long enough passphrase"])
def test_what_it_writes_is_what_others_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str) -> None:
    home = tmp_path / "home"
    with create(home, tmp_path / "store") as federation:
        before = federation.entry
    if passphrase:
        key = Identity.load(home / "keys/institution.pem", EMAIL)
        (home / "keys/institution.pem").unlink()
        monkeypatch.setenv("DATASITES_PASSPHRASE", passphrase)
        key.save(home / "keys/institution.pem", passphrase)
    with Federation.open(home) as federation:
        assert federation.hand_over() == home / "hand-over.json"
        assert federation.identity.public_key != before.public_key
        assert given(home)[1].entry == federation.entry
    with Federation.open(home) as again:
        assert again.roster.get(EMAIL) == again.entry == given(home)[0]
        assert before.public_key in again.roster.revoked
    for file in ("institution.pem", "institution-before.pem"):
        path = home / "keys" / file
        assert path.stat().st_mode & 0o777 == 0o600
        assert (b"ENCRYPTED" in path.read_bytes()) == bool(passphrase)


def test_a_second_one_waits_until_the_first_is_over(tmp_path: Path) -> None:
    with create(tmp_path / "home", tmp_path / "store") as federation:
        before = federation.entry
        federation.hand_over()
        require_whole(federation, before)
        with pytest.raises(InputError, match="Federation.forget_old_key"):
            federation.hand_over()
        require_whole(federation, before)
        for _ in range(2):
            federation.forget_old_key()
        assert not (federation.home / "keys/institution-before.pem").exists()
        before = federation.entry
        federation.hand_over()
        require_whole(federation, before)


#: What is written on the way, one after the other.
WRITES: tuple[tuple[Any, str], ...] = (
    (Identity, "save"),
    (module, "replace_durably"),
    (module, "move_durably"),
    (Roster, "save"),
)


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("step", range(6))
def test_killed_at_any_step_there_is_a_usable_key_and_the_home_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool
) -> None:
    home, done = tmp_path / "home", 0
    federation = create(home, tmp_path / "store")
    before = federation.entry

    def dying(inner: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step + 1 and not after:
                raise Killed
            said = inner(*arguments, **options)
            if done == step + 1:
                raise Killed
            return said

        return write

    with monkeypatch.context() as patch:
        for where, name in WRITES:
            patch.setattr(where, name, dying(getattr(where, name)))
        with pytest.raises(Killed):
            federation.hand_over()
    assert done == step + 1
    federation.close()
    with Federation.open(home) as again:
        assert again.entry == again.roster.get(EMAIL) == RosterEntry.parse((home / "roster-entry.json").read_bytes())
        if again.entry.public_key == before.public_key:  # nothing has happened
            assert not (home / "hand-over.json").exists()
            again.hand_over()
        require_whole(again, before)


def test_a_full_disk_once_the_new_key_is_in_force_costs_no_old_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it nobody could be told: neither the next try nor who forgets the old key loses it."""
    with create(tmp_path / "home", tmp_path / "store") as federation:
        before = federation.entry

        def full(*_: object, **__: object) -> None:
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(Roster, "save", full)
            for act in (federation.hand_over, federation.forget_old_key, federation.hand_over):
                with pytest.raises(OSError, match="no space left"):
                    act()
        with pytest.raises(InputError, match="forget_old_key"):
            federation.hand_over()
        require_whole(federation, before)


def test_a_party_that_is_pinned_hands_over_to_its_new_key_and_a_hospital_does_not(tmp_path: Path) -> None:
    partner, site = Identity.generate("partner@x.example.org"), Identity.generate("datasite@y.example.org")
    new, file = Identity.generate(partner.email), tmp_path / "theirs.json"
    with create(tmp_path / "home", tmp_path / "store") as federation:
        federation.pin(entry(partner, "researcher"), entry(site, "hospital"))
        before = Roster.load(federation.home / "roster.json")
        thief = Identity.generate(partner.email)
        replaced, wanted = entry(partner, "researcher"), entry(new, "researcher")
        following = Identity.generate(site.email)
        refused: dict[str, bytes] = {
            "not a hand-over": b"{}",
            "another entry": HandOver.sign(thief, new, entry(thief, "researcher"), wanted).canonical(),
            "does not verify": HandOver.sign(partner, new, replaced, wanted)
            .model_copy(update={"old_signature": "ab" * 64})
            .canonical(),
            "a hospital's key is not handed over": HandOver.sign(
                site, following, entry(site, "hospital"), entry(following, "hospital")
            ).canonical(),
        }
        for words, data in refused.items():
            file.write_bytes(data)
            with pytest.raises((InputError, IdentityError), match=words):
                federation.accept_hand_over(file)
        with pytest.raises(InputError, match="not a hand-over"):
            federation.accept_hand_over(tmp_path / "nowhere.json")
        assert federation.roster == Roster.load(federation.home / "roster.json") == before
        file.write_bytes(HandOver.sign(partner, new, replaced, wanted).canonical())
        assert federation.accept_hand_over(file) == wanted
        assert Roster.load(federation.home / "roster.json").get(partner.email) == wanted
        with pytest.raises(InputError, match="this researcher itself"):
            federation.accept_hand_over(federation.hand_over())


def test_a_run_goes_on_under_the_new_key_by_a_new_epoch(federation: Running) -> None:
    """Once the hospitals have accepted it; the round that the old key could not begin is given up."""
    run = federation.run()
    assert run.next_round().epoch == 0
    party = federation.researcher
    before, new = party.entry(), Identity.generate(party.email)
    change = HandOver.sign(party.identity, new, before, before.model_copy(update={"public_key": new.public_key}))
    with federation.lock:
        party.identity = new
        for one in (party, *(hospital.party for hospital in federation.hospitals.values())):
            one.roster = one.roster.hand_over(change)
            assert one.control is not None
            one.control.pin(one.roster)
    record = federation.run().next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)
