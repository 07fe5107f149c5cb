"""The journal on disk: killed anywhere a release is made once or not; set back, it refuses to release."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import datasites.secagg.journal
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import AlreadyMasked, JournalDamaged, JournalRolledBack, SpentState
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import Certificate, Enrolment, Ready, ShareBundle, SurvivorAck, UnmaskShares
from tests.secagg.cohort import TODAY, Cohort, assert_exact, email, integers
from tests.secagg.journalled import Journalled

A = email(0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def opened(home: Path) -> Journal:
    return Journal(home / "journal", home / "elsewhere" / "anchor")


def killed_at(step: int, home: Path, action) -> bool:
    """Run `action` in a child that is killed with SIGKILL before its `step`-th change on disk; whether it was killed.

    A change is what is synced, renamed or removed: before a sync a file may be there in part.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(change):
            def counting(*arguments, **options):
                nonlocal calls
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                return change(*arguments, **options)

            return counting

        os.replace, os.fsync, os.unlink = counted(os.replace), counted(os.fsync), counted(os.unlink)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def started(home: Path, four: Cohort) -> None:
    with opened(home) as journal:
        journal.commit(four.states[A])


def test_a_whole_round_through_the_journal(home, four):
    """Every state is read back from disk; every message is sent again byte by byte."""
    manifest = four.manifest()
    inputs = integers(manifest, four.members)
    member = four.members[A]
    four.open(manifest)
    with opened(home) as journal:
        journal.commit(four.states[A])
        state, masked = member.mask(journal.state, inputs[A])
        journal.commit(state, masked)
    for name in list(four.members)[1:3]:
        four.state = four.aggregator.receive(four.state, four.mask(name, inputs[name]))
    with opened(home) as journal:
        again = journal.masked()
        assert (again.to_bytes(), bytes(again.payload)) == (masked.to_bytes(), bytes(masked.payload))
        with pytest.raises(AlreadyMasked):
            member.mask(journal.state, inputs[A])
        four.state = four.aggregator.receive(four.state, again)
        survivors = four.survivors()
        state, answer = member.unmask(journal.state, survivors)
        journal.commit(state, answer)
    with opened(home) as journal:
        assert journal.sent(UnmaskShares) == answer.to_bytes()
        assert member.unmask(journal.state, survivors) == (journal.state, answer)
        assert journal.state.of_round(1) is None
    four.states[A] = state
    assert_exact(four.unmask(list(four.members)[:3], survivors), inputs)


def test_setup_messages_can_be_sent_again(home):
    cohort = Cohort.of(4)
    member = cohort.members[A]
    certificates = cohort.enrol().certificates[1:]
    with opened(home) as journal:
        state, certificate = member.certify(journal.state)
        enrolment = Enrolment.seal(
            cohort.aggregator.identity, context=cohort.context.digest(), certificates=(certificate, *certificates)
        )
        journal.commit(state, certificate)
        state, bundles = member.share(journal.state, enrolment, today=TODAY)
        journal.commit(state, *bundles.values())
        state, ready = member.ready(journal.state)
        journal.commit(state, ready)
    with opened(home) as journal:
        assert journal.sent(Certificate) == certificate.to_bytes()
        assert {journal.sent(ShareBundle, peer) for peer in bundles} == {one.to_bytes() for one in bundles.values()}
        assert journal.sent(Ready) == ready.to_bytes()
        assert journal.sent(SurvivorAck) is None
        assert journal.sent(ShareBundle, A) is None


@pytest.mark.waits
def test_killed_anywhere_a_vector_is_released_once_or_not_at_all(home, four):
    """Each try would release another vector (fresh rounding bits); only a committed one may ever be seen (I6)."""
    manifest = four.manifest()
    four.open(manifest)
    vectors = {"update": np.full(37, 0.123), "weight": np.full(1, 0.5)}
    member = four.members[A]
    outcomes = []
    for step in range(40):
        here = home / str(step)
        started(here, four)

        def attempt(here=here):
            with opened(here) as journal:
                state, masked = member.mask(journal.state, vectors)
                journal.commit(state, masked)

        killed = killed_at(step, here, attempt)
        with opened(here) as journal:
            first = journal.masked()
            outcomes.append(first is not None)
            if first is None:
                # Never committed, so never sent: the round may be masked, once.
                assert journal.state == four.states[A]
                state, masked = member.mask(journal.state, vectors)
                journal.commit(state, masked)
                first = masked
            with pytest.raises(AlreadyMasked):
                member.mask(journal.state, vectors)
        with opened(here) as journal:
            assert bytes(journal.masked().payload) == bytes(first.payload)
            assert journal.masked().header == first.header
        if not killed:
            break
    # Killed before the record is renamed there is no release, afterwards there is, whatever else was left undone.
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) >= 8
    assert outcomes.count(True) >= 5


@pytest.mark.waits
def test_killed_anywhere_an_answer_is_for_one_list(home, four):
    manifest = four.manifest()
    inputs = integers(manifest, four.members)
    four.open(manifest)
    four.collect(inputs, four.members)
    survivors = four.survivors()
    member = four.members[A]
    for step in range(40):
        here = home / str(step)
        started(here, four)

        def attempt(here=here):
            with opened(here) as journal:
                state, answer = member.unmask(journal.state, survivors)
                journal.commit(state, answer)

        killed = killed_at(step, here, attempt)
        with opened(here) as journal:
            state, answer = member.unmask(journal.state, survivors)
            if journal.state.open.answer is None:
                journal.commit(state, answer)
            assert journal.state.open.answer.to_bytes() == answer.to_bytes()
            assert journal.state.of_round(1) is None
        if not killed:
            break
    assert not killed
    assert step >= 12


# -- set back ---------------------------------------------------------------------------------------------------------


def test_a_restored_backup_is_refused(home, four):
    manifest = four.manifest()
    four.open(manifest)
    started(home, four)
    shutil.copytree(home / "journal", home / "backup")
    with opened(home) as journal:
        state, masked = four.members[A].mask(journal.state, integers(manifest, [A])[A])
        journal.commit(state, masked)
    shutil.rmtree(home / "journal")
    shutil.copytree(home / "backup", home / "journal")
    for _ in range(2):
        with pytest.raises(JournalRolledBack, match="restored from a backup"):
            opened(home)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_backup_of_any_age_is_refused(home, four, steps):
    started(home, four)
    shutil.copytree(home / "journal", home / "backup")
    member = four.members[A]
    with opened(home) as journal:
        for number in range(1, steps + 1):
            journal.commit(member.open(journal.state, four.signed(four.manifest(number)), today=TODAY))
    shutil.rmtree(home / "journal")
    shutil.copytree(home / "backup", home / "journal")
    with pytest.raises(JournalRolledBack):
        opened(home)


def test_a_lost_journal_or_anchor_is_refused(home, four):
    started(home, four)
    anchor = home / "elsewhere" / "anchor"
    kept = anchor.read_bytes()
    anchor.unlink()
    with pytest.raises(JournalRolledBack, match="anchor is missing.*`datasites study rejoin CASE`"):
        opened(home)
    anchor.write_bytes(kept)
    opened(home).close()
    (home / "journal" / "record").unlink()
    with pytest.raises(JournalRolledBack, match="stands at 0"):
        opened(home)


def test_an_anchor_set_back_alone_is_refused_too(home, four):
    started(home, four)
    anchor = home / "elsewhere" / "anchor"
    kept = anchor.read_bytes()
    with opened(home) as journal:
        journal.commit(four.members[A].open(journal.state, four.signed(four.manifest()), today=TODAY))
    anchor.write_bytes(kept)
    with pytest.raises(JournalRolledBack):
        opened(home)


def test_damaged_files_are_named_without_their_contents(home, four):
    started(home, four)
    journal, anchor = home / "journal", home / "elsewhere" / "anchor"
    secrets = four.states[A].secrets[-1]
    for path in [path for path in journal.rglob("*") if path.is_file() and path.name != "lock"]:
        data = path.read_bytes()
        for broken in (data[:-1], data + b"!", bytes([data[0] ^ 1]) + data[1:], None):
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            with pytest.raises((JournalDamaged, JournalRolledBack), match="datasites study rejoin CASE") as caught:
                opened(home)
            assert str(secrets.key[:8])[2:-1] not in str(caught.value)
            path.write_bytes(data)
    opened(home).close()
    anchor.write_bytes(b"{}x")
    with pytest.raises(JournalDamaged):
        opened(home)


def test_a_journal_of_an_older_version_is_refused_in_a_sentence(home, four):
    started(home, four)
    record = home / "journal" / "record"
    record.write_bytes(record.read_bytes().replace(b'"format":2', b'"format":1'))
    with pytest.raises(JournalDamaged, match="not a journal record of this version; run `datasites study rejoin CASE`"):
        opened(home)


def test_after_starting_over_only_a_later_epoch_and_round_begins(home, four):
    """A hospital that was set back rejoins with fresh keys; a round that it ever reached stays closed (I6)."""
    member = four.members[A]
    started(home, four)
    with opened(home) as journal:
        journal.commit(member.open(journal.state, four.signed(four.manifest(2)), today=TODAY))
    (home / "journal" / "record").unlink()
    with pytest.raises(JournalRolledBack):
        opened(home)
    Journal.start_over(home / "journal", home / "elsewhere" / "anchor")

    def following(**changes):
        return Member(member.identity, EpochTerms.model_validate({**four.context.model_dump(), **changes}))

    with opened(home) as journal:
        assert journal.state is None
        assert journal.floor == (0, 2)
        for changes in ({}, {"first_round": 3}, {"epoch": 1}, {"epoch": 1, "first_round": 2}):
            with pytest.raises(SpentState, match="were reached; the next epoch must be 1 or later"):
                journal.commit(following(**changes).certify(journal.state)[0])
        state, certificate = following(epoch=1, first_round=3).certify(journal.state)
        journal.commit(state, certificate)
    with opened(home) as journal:
        assert journal.state == state
        assert journal.floor == (1, 2)


# -- one process, one chain -------------------------------------------------------------------------------------------


def test_one_process_at_a_time(home, four):
    with opened(home) as journal:
        with pytest.raises(SpentState, match="another process"):
            opened(home)
        with pytest.raises(SpentState, match="another process"):
            Journal.start_over(home / "journal", home / "elsewhere" / "anchor")
        journal.commit(four.states[A])
    with pytest.raises(SpentState, match="closed"):
        journal.commit(four.states[A])
    opened(home).close()


def test_a_state_from_a_fork_is_refused(home, four):
    """Two manifests opened from one state: the second branch can't be committed, however long it is."""
    member = four.members[A]
    one, other = four.signed(four.manifest()), four.signed(four.manifest(model_hash="b" * 64))
    with opened(home) as journal:
        journal.commit(four.states[A])
        branch = member.open(journal.state, other, today=TODAY)
        journal.commit(member.open(journal.state, one, today=TODAY))
        longer, masked = member.mask(branch, integers(four.manifest(), [A])[A])
        for state in (branch, longer, four.states[A]):
            with pytest.raises(SpentState, match="one step"):
                journal.commit(state, masked)
        assert journal.masked() is None


def test_files_are_private_and_old_ones_go(home, four):
    member = four.members[A]
    started(home, four)
    with opened(home) as journal:
        for number in (1, 2):
            manifest = four.manifest(number)
            journal.commit(member.open(journal.state, four.signed(manifest), today=TODAY))
            key = journal.state.of_round(number).key
            state, masked = member.mask(journal.state, integers(manifest, [A])[A])
            journal.commit(state, masked)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    kept = {path.stat().st_size for path in (home / "journal" / "parts").iterdir()}
    assert len(kept) < 12, "the open round's payload, header and shares; a file for each later round; the enrolment"
    import base64

    assert all(base64.b64encode(key) not in path.read_bytes() for path in files)


def test_a_payload_that_was_damaged_on_disk_is_not_sent(home, four):
    from datasites.secagg.errors import BadMessage

    manifest = four.manifest()
    four.open(manifest)
    started(home, four)
    with opened(home) as journal:
        state, masked = four.members[A].mask(journal.state, integers(manifest, [A])[A])
        journal.commit(state, masked)
        payload = home / "journal" / "parts" / masked.header.payload
        payload.write_bytes(bytes(len(masked.payload)))
        with pytest.raises(BadMessage, match="payload"):
            journal.masked()
        payload.unlink()
        with pytest.raises(JournalDamaged, match="missing"):
            journal.masked()


@pytest.mark.parametrize("late", [False, True], ids=["nothing written", "written, and not synchronised"])
@pytest.mark.parametrize("second", range(6))
@pytest.mark.parametrize("first", range(6))
def test_a_disk_that_is_full_twice_is_not_taken_for_a_backup(home, monkeypatch, first, second, late):
    """The writes of a step fail from one on, and so do those of the next; then the process ends."""
    hospitals = Journalled(Cohort.of(4, threshold=3), home)
    hospitals.set_up()
    journal, member, cohort = hospitals.journals[A], hospitals.cohort.members[A], hospitals.cohort
    manifest = cohort.manifest(2)
    opened = member.open(journal.state, cohort.signed(manifest), today=TODAY)
    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        full_from(first, patch, late)
        journal.commit(opened)
    if journal.state != opened:
        journal.commit(opened)
    masked, vector = member.mask(opened, integers(manifest, [A])[A])
    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        full_from(second, patch, late)
        journal.commit(masked, vector)
    stood = journal.state
    hospitals.close()
    with Journal(home / A / "journal", home / A / "anchor") as again:
        assert again.state == stood


def full_from(place: int, patch: pytest.MonkeyPatch, late: bool = False) -> None:
    """Let the journal's durable writes fail from the one at this place on. late: once they are in their place."""
    count = itertools.count()
    for write in ("write_durably", "append_durably", "replace_durably"):
        genuine = getattr(datasites.secagg.journal, write)

        def counted(*arguments, genuine=genuine):
            fails = next(count) >= place
            if late or not fails:
                genuine(*arguments)
            if fails:
                raise OSError(errno.ENOSPC, "no space left on device")

        patch.setattr(datasites.secagg.journal, write, counted)
