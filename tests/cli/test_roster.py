"""Whose keys are trusted: compared by people, pinned with a record, and never again once they were revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasites.study.identity import Identity, IdentityError
from datasites.study.roster import HandOver, Roster, RosterEntry
from tests.cli.command_line import CommandLine
from tests.study.entries import entry_of

WHY = ("--reason", "why")


class Party:
    """A party that is not pinned yet, and its roster-entry.json."""

    def __init__(self, folder: Path, name: str, role: str = "hospital") -> None:
        self.email, self.file = f"office@{name}.example.org", folder / f"{name}.json"
        self.identity = Identity.generate(self.email)
        self.entry = entry_of(self.identity, role, organisation=name.title(), syft_fingerprint="ab" * 20)
        self.file.write_bytes(self.entry.canonical())


@pytest.fixture
def east(tmp_path: Path) -> Party:
    return Party(tmp_path, "east")


@pytest.fixture
def west(tmp_path: Path) -> Party:
    return Party(tmp_path, "west")


def pinned(datasites: CommandLine, party: Party) -> RosterEntry | None:
    try:
        return Roster.load(datasites.home.roster).get(party.email)
    except IdentityError:
        return None


def test_a_party_is_pinned_once_its_fingerprint_was_compared(datasites: CommandLine, east: Party) -> None:
    assert f"{east.email}: not pinned" in datasites.refuses("roster", "pin", east.file, typed="n\n")
    done = datasites.does("roster", "pin", east.file, typed="y\n")
    assert f"fingerprint {east.entry.fingerprint}" in done.printed
    assert done.lines[-1].endswith(f"{east.email} is pinned")
    assert pinned(datasites, east) == east.entry
    record = datasites.logged("pinned")[-1]
    assert record["email"] == east.email
    assert (record["fingerprint"], record["person"]) == (east.entry.fingerprint, "command line")
    assert east.entry.fingerprint in datasites.does("roster", "show").printed


@pytest.mark.slow
def test_of_files_of_which_one_is_no_entry_none_is_pinned(datasites: CommandLine, east: Party, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for content in (b"{}", b"[" * 100_000, b"\xff", None):
        bad.unlink(missing_ok=True)
        if content is not None:
            bad.write_bytes(content)
        refused = datasites.refuses("roster", "pin", east.file, bad, "--yes")
        assert f"{bad}: not a roster entry; ask for the party's roster-entry.json" in refused
        refused = datasites.refuses("roster", "propose", bad, by="ann")
        assert "roster-entry.json" in refused


def test_a_key_that_the_roster_refuses_is_not_pinned(datasites: CommandLine, east: Party, tmp_path: Path) -> None:
    unreachable = east.entry.model_copy(update={"syft_fingerprint": ""})
    (tmp_path / "unreachable.json").write_bytes(unreachable.canonical())
    other = Party(tmp_path, "other").entry.model_copy(update={"email": east.email})
    (tmp_path / "other.json").write_bytes(other.canonical())
    assert "has no syft fingerprint" in datasites.refuses("roster", "pin", tmp_path / "unreachable.json", "--yes")
    datasites.does("roster", "pin", east.file, "--yes")
    assert east.email in datasites.refuses("roster", "pin", tmp_path / "other.json", "--yes")
    datasites.does("roster", "revoke", east.email, *WHY, by="ann")
    assert "revoked" in datasites.refuses("roster", "pin", east.file, "--yes")
    assert "revoked" in datasites.refuses("roster", "propose", east.file, by="ann")


def test_two_people_pin_what_one_of_them_has_entered(datasites: CommandLine, east: Party, west: Party) -> None:
    done = datasites.does("roster", "propose", east.file, by="ann")
    assert done.printed == f"entry 1: {east.email} waits for a second person"
    (proposed,) = datasites.logged("party_proposed")
    assert (proposed["email"], proposed["person"]) == (east.email, "ann")
    assert pinned(datasites, east) is None
    assert "another entry waits" in datasites.refuses("roster", "propose", east.file, by="bob")
    read_out, other = ("--fingerprint", east.entry.fingerprint), ("--fingerprint", west.entry.fingerprint)
    assert "ann entered it" in datasites.refuses("roster", "confirm", 1, *read_out, by="ann")
    assert "not the fingerprint" in datasites.refuses("roster", "confirm", 1, *other, by="bob")
    assert "entry 2: does not wait" in datasites.refuses("roster", "confirm", 2, *read_out, by="bob")
    assert datasites.does("roster", "confirm", 1, *read_out, by="bob").printed == f"{east.email} is pinned"
    assert pinned(datasites, east) == east.entry
    assert datasites.logged("pinned")[-1]["person"] == "bob"
    assert "entry 1: does not wait" in datasites.refuses("roster", "confirm", 1, *read_out, by="bob")
    assert "is pinned with this key already" in datasites.refuses("roster", "propose", east.file, by="ann")


def test_one_person_withdraws_an_entry(datasites: CommandLine, east: Party) -> None:
    datasites.does("roster", "propose", east.file, by="ann")
    assert datasites.does("roster", "withdraw", 1, by="bob").printed == "entry 1: withdrawn"
    (record,) = datasites.logged("party_withdrawn")
    assert (record["email"], record["person"]) == (east.email, "bob")
    assert "entry 1: does not wait" in datasites.refuses(
        "roster", "confirm", 1, "--fingerprint", east.entry.fingerprint, by="cyd"
    )
    assert "entry 1: does not wait" in datasites.refuses("roster", "withdraw", 1, by="bob")


def test_one_person_revokes_a_party_and_not_the_hospital_itself(datasites: CommandLine, east: Party) -> None:
    datasites.does("roster", "pin", east.file, "--yes")
    assert (
        datasites.does("roster", "revoke", east.email, *WHY, by="ann").printed == f"{east.email} is no longer trusted"
    )
    assert pinned(datasites, east) is None
    assert datasites.logged("unpinned") == [{"email": east.email, "reason": "why", "person": "ann"}]
    assert "is this hospital itself" in datasites.refuses(
        "roster", "revoke", datasites.home.settings.email, *WHY, by="ann"
    )
    assert "zoe@x.example.org" in datasites.refuses("roster", "revoke", "zoe@x.example.org", *WHY, by="ann")


def test_a_hand_over_shows_both_keys_and_warns_before_it_asks(datasites: CommandLine, tmp_path: Path) -> None:
    party, file = Party(tmp_path, "university", "researcher"), tmp_path / "hand-over.json"
    datasites.does("roster", "pin", party.file, "--yes")
    new = Identity.generate(party.email)
    after = party.entry.model_copy(update={"public_key": new.public_key})
    file.write_bytes(HandOver.sign(party.identity, new, party.entry, after).canonical())
    line = ("roster", "hand-over", file)
    password = "a long enough passphrase\n"
    assert f"{party.email}: the pinned key stays" in datasites.refuses(*line, by="ann", typed=f"{password}n\n")
    done = datasites.does(*line, by="ann", typed=f"{password}y\n")
    for wanted in (party.entry.fingerprint, after.fingerprint, "thief", "datasites roster revoke"):
        assert wanted in done.printed
    assert pinned(datasites, party) == after
    record = datasites.logged("pinned")[-1]
    assert (record["person"], record["handed_over_by"]) == ("ann", party.entry.fingerprint)
    datasites.refuses(*line, "--yes", by="ann")
    file.write_bytes(b"{}")
    assert f"{file}: not a hand-over; ask for the party's" in datasites.refuses(*line, "--yes", by="ann")
    file.unlink()
    assert f"{file}: not a hand-over" in datasites.refuses(*line, "--yes", by="ann")
