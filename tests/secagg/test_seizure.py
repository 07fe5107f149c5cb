"""What is on the hospitals' disks, for whoever seizes them: secrets that were destroyed are in no file any more."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from datasites.secagg import setup, shares
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.journal import Journal
from datasites.secagg.layout import read
from datasites.secagg.member import Member
from datasites.secagg.state import PAIR, MemberState
from tests.secagg.cohort import TODAY, Cohort, email, integers
from tests.secagg.journalled import Journalled, files_with

A = email(0)


@pytest.fixture
def five(tmp_path: Path):
    hospitals = Journalled(Cohort.of(5, threshold=4), tmp_path)
    yield hospitals
    hospitals.close()


def seized(hospitals: Journalled, names: list[str]) -> dict[str, MemberState]:
    """The states that somebody reads from the files of some hospitals."""
    layouts = {name: read(hospitals.folder / name / "journal") for name in names}
    return {name: layout.state for name, layout in layouts.items() if layout is not None}


def shares_of(victim: str, number: int, hospitals: Journalled, names: list[str]) -> dict[int, bytes]:
    """Shares of one hospital's key and seed in one round, by holder: from journals, and from all that was ever sent."""
    context = hospitals.cohort.context
    found = {}
    for name, state in seized(hospitals, names).items():
        epoch = setup.enrolled(context, state)
        owner, holder = epoch.place(victim), epoch.place(name)
        secrets = state.of_round(number)
        if secrets is not None and any(secrets.held[owner * PAIR : (owner + 1) * PAIR]):
            found[holder] = secrets.held[owner * PAIR : (owner + 1) * PAIR]
        pieces = [one.shares for one in state.accepted if one.owner == victim]
        for bundle in hospitals.store:
            if (bundle.sender, bundle.recipient) == (victim, name) and state.hpke_private:
                key = X25519PrivateKey.from_private_bytes(state.hpke_private)
                try:
                    associated = setup._associated(context, epoch, victim, name)
                    pieces.append(setup._SUITE.decrypt(bundle.sealed, key, info=associated))
                except (InvalidTag, ValueError):
                    continue
        start = (number - context.first_round) * PAIR
        for piece in filter(None, pieces):
            found[holder] = piece[start : start + PAIR]
    return found


def test_journals_and_every_letter_of_the_store_do_not_open_a_past_round(five):
    """A bundle of one hospital never came, so the others' keys were once kept for it, all through the epoch."""
    cohort, lost = five.cohort, email(4)
    five.share()
    for name in cohort.members:
        five.accept(name, without=[lost] if name != lost else [])
    secret = cohort.states[A].secrets[0]
    before = shares_of(A, 1, five, [name for name in cohort.members if name != A])
    assert shares.combine(before, 4) == secret.key + secret.seed, "during setup the attack works"
    for name in cohort.members:
        if name != lost:  # which never gets to "ready", and keeps its key
            five.ready(name)
    five.run_round(1)
    after = shares_of(A, 1, five, list(cohort.members))
    assert set(after) == {4}, "the one that stood still holds its own; t - 1 of them would still say nothing"
    later = shares_of(A, 2, five, list(cohort.members))
    assert shares.combine(later, 4) == cohort.states[A].of_round(2).key + cohort.states[A].of_round(2).seed


def test_what_a_step_destroys_is_in_no_file_any_more(five):
    """After each step every file of the hospital's folder is searched, its anchor and left-overs included."""
    cohort, home = five.cohort, five.folder / A
    five.share()
    keys = [secret for one in cohort.states[A].secrets for secret in (one.key, one.seed)]
    hpke = cohort.states[A].hpke_private
    assert {index for _, index in files_with(home, [hpke, *keys])} == set(range(7)), "they are there while they live"
    for name in cohort.members:
        five.accept(name, without=[email(4)] if name == A else [])
    assert files_with(home, [hpke]), "needed for the bundle that is still to come"
    columns = [one.shares for one in cohort.states[A].accepted]
    for name in list(cohort.members)[:4]:
        five.ready(name)
    assert not files_with(home, [hpke])
    first, second, third = cohort.states[A].secrets
    assert [column[:PAIR] for column in columns] == [first.held[place * PAIR :][:PAIR] for place in (1, 2, 3)]
    assert len(files_with(home, [first.held])) == 1, "one file of its own"
    # Round 1 is passed over: its secrets are gone when round 2 is opened. Hospital 4 takes no part.
    manifest = five.open(2)
    own = [second.key, second.seed]
    gone = [first.key, first.seed, first.held[PAIR : 2 * PAIR]]
    drawn = cohort.states[A].open.secret
    assert not files_with(home, gone)
    assert {index for _, index in files_with(home, [*own, drawn, second.held])} == {0, 1, 2, 3}
    survivors = five.mask(manifest, integers(manifest, manifest.participants))
    assert not files_with(home, [*gone, *own, drawn])
    assert files_with(home, [second.held]), "needed for the answer"
    five.unmask(manifest, survivors)
    # Of a survivor the share of its seed is told; the share of its key never is.
    assert not files_with(home, [*gone, *own, second.held, *(second.key_share(place) for place in range(1, 4))])
    assert files_with(home, [third.key])
    following = EpochTerms.model_validate({**cohort.context.model_dump(), "epoch": 1, "first_round": 3})
    cohort.states[A], certificate = Member(cohort.members[A].identity, following).certify(cohort.states[A])
    five.commit(A, certificate)
    assert not files_with(home, [third.key, third.seed, third.held])
    newest = cohort.states[A].secrets[0].key
    assert files_with(home, [newest])
    five.journals[A].close()
    Journal.start_over(home / "journal", home / "anchor")
    assert not files_with(home, [newest])


def test_what_a_killed_step_leaves_is_removed_at_the_next_start(five):
    """Files that were made before the record, and files that were over after it."""
    five.set_up()
    secrets, home = five.cohort.states[A].secrets[0], five.folder / A
    journal = home / "journal"
    old = {path.name: path.read_bytes() for path in (journal / "parts").iterdir()}
    five.run_round(1)
    five.journals[A].close()
    for name, data in old.items():
        (journal / "parts" / name).write_bytes(data)
    (journal / "record.new").write_bytes(secrets.key)
    (journal / f"accepted-{five.cohort.context.epoch}").write_bytes(secrets.held)
    assert files_with(home, [secrets.key])
    five.journals[A] = Journal(journal, home / "anchor")
    assert five.journals[A].state == five.cohort.states[A]
    assert not files_with(home, [secrets.key, secrets.seed, secrets.held])


def test_keys_that_are_given_up_are_gone_however_often_that_is_killed(five, monkeypatch):
    """The record goes last: as long as it is there, `closing.destroy_secrets` begins again."""
    five.set_up()
    secrets, home = five.cohort.states[A].secrets[0], five.folder / A
    journal = home / "journal"
    five.journals[A].close()
    unlink, kills = Path.unlink, 0

    def killed(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        raise KeyboardInterrupt

    while (journal / "record").exists():
        kills += 1
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                Journal.start_over(journal, home / "anchor")
    assert kills > 10
    assert not files_with(home, [secrets.key, secrets.seed, secrets.held])
    Journal.start_over(journal, home / "anchor")


@pytest.mark.parametrize("step", ["write_durably", "Journal._settle", "Journal._remove_what_is_over"])
def test_what_a_step_that_failed_has_left_is_gone_after_the_next(five, monkeypatch, step):
    """A disk that is full before the record is written, or after it; the process goes on."""
    five.set_up()
    first, home = five.cohort.states[A].secrets[0], five.folder / A
    journal, member = five.journals[A], five.cohort.members[A]
    opened = member.open(journal.state, five.cohort.signed(five.cohort.manifest(2)), today=TODAY)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"datasites.secagg.journal.{step}", full)
        with pytest.raises(OSError, match="no space"):
            journal.commit(opened)
    if journal.state != opened:
        journal.commit(opened)
    vector = integers(five.cohort.manifest(2), [A])[A]
    state, masked = member.mask(journal.state, vector)
    journal.commit(state, masked)
    assert not files_with(home, [first.key, first.seed, first.held])
