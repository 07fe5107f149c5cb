"""What leaves in a round leaves once: paid for and written down before, the same bytes after, for one survivor list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from datasites.hospital.audit.log import AuditLog
from datasites.hospital.budget import ledger
from datasites.hospital.models import Round
from datasites.secagg.journal import Journal
from datasites.secagg.messages import (
    AckList,
    MaskedVector,
    SurvivorAck,
    SurvivorList,
    UnmaskShares,
)
from datasites.study import letters
from datasites.study.audit_chain import RELEASED, Fork, records
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.manifest import StudyTerms
from datasites.transport.mailroom import Mailroom, letter_key
from tests.hospital.running import OWN, RESEARCHER, Running
from tests.kills import Killed, kill_after, kill_before

pytestmark = pytest.mark.waits

PEER = "datasite@hungary.example.org"
Kill = Callable[[Any], None]


def holds(kind: type) -> Callable[..., bool]:
    """Of a commit of the journal: whether it is that of such a message."""
    return lambda *arguments, **_: any(isinstance(argument, kind) for argument in arguments)


def is_sent(kind: str) -> Callable[..., bool]:
    return lambda *arguments, **_: kind in arguments


def in_store(running: Running, number: int, kind: str) -> bytes | None:
    """The letter itself, which is encrypted anew where it is made anew."""
    found: bytes | None = running.store.get(letter_key(OWN, running.study_hash, RESEARCHER, number, kind))
    return found


def vector(running: Running, number: int = 1) -> tuple[letters.Masked, MaskedVector]:
    letter = running.heard(number, letters.MASKED)
    assert letter is not None
    body = letters.Masked.model_validate(letter.body)
    return body, MaskedVector.from_bytes(body.header.encode(), memoryview(letter.blob or b""))


# -- the masked vector -------------------------------------------------------------------------------------------------


def test_a_release_is_paid_for_and_written_down_before_it_leaves(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ledger, journal, log and database; and it leaves once (I4, I6)."""
    send, by_then = Mailroom.send, []

    def seen(room: Mailroom, to: str, study: str, number: int, kind: str, *rest: Any) -> None:
        if kind == letters.MASKED:
            manifest = running.journal.state.open.manifest
            account = ledger.study_account(running.case.dataset, running.study_hash)
            by_then.append(
                (
                    ledger.is_charged(account, 1, running.case.round_asked(manifest)),
                    running.journal.masked() is not None,
                    [record.fields["round"] for record in running.logged(RELEASED)],
                    Round.objects.get().state,
                )
            )
        send(room, to, study, number, kind, *rest)

    monkeypatch.setattr(Mailroom, "send", seen)
    running.set_up()
    running.open(1)
    running.steps()
    running.steps()
    assert by_then == [(True, True, [1], Round.State.RELEASED)]


def test_a_vector_goes_out_with_its_header_the_logs_head_and_public_figures_alone(running: Running) -> None:
    """Each follows from the public record and the vector itself (I16)."""
    running.set_up()
    manifest = running.open(1)
    running.steps()
    letter = running.heard(1, letters.MASKED)
    assert letter is not None
    assert set(letter.body) == {"header", "audit", "counts_sigma", "fork"}
    body, masked = vector(running)
    dimension = sum(term.length for term in manifest.vectors)
    assert len(letter.blob or b"") == 4 * dimension == 4 * masked.header.dimension
    (record,) = running.logged(RELEASED)
    assert masked.header.payload == sha256_hex(bytes(masked.payload)) == record.fields["sha256"]
    assert record.fields["manifest"] == manifest.digest()
    assert record.fields["vectors"] == [term.name for term in manifest.vectors]
    assert (body.audit.releases, body.fork) == (1, None)
    body.audit.check()
    hashes = {one.hash: one for one in records(running.site.home.audit)}
    assert hashes[body.audit.hash].kind == RELEASED, "the head is of a log that has this release"
    study = running.case.study
    assert (body.counts_sigma["final"] > 0, body.counts_sigma["interim"] > 0) == (True, bool(study.evaluation.every))


#: Every place between the commit that makes the release, which the journal's tests kill too, and its being sent.
RELEASING: dict[str, Kill] = {
    "made": kill_after(Journal, "commit", holds(MaskedVector)),
    "to be recorded": kill_before(AuditLog, "append", is_sent(RELEASED)),
    "recorded": kill_after(AuditLog, "append", is_sent(RELEASED)),
    "to be stored": kill_before(Round, "save"),
    "stored": kill_after(Round, "save"),
    "to be sent": kill_before(Mailroom, "send", is_sent(letters.MASKED)),
    "sent": kill_after(Mailroom, "send", is_sent(letters.MASKED)),
}


def test_killed_anywhere_after_it_was_made_the_same_release_leaves_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One charge and one record, whatever was begun before."""
    running.set_up()
    running.open(1)
    running.until_at_work()
    payloads = []
    for place, kill in RELEASING.items():
        with monkeypatch.context() as patch:
            kill(patch)
            with pytest.raises(Killed):
                running.steps()
        made = running.journal.masked()
        assert made is not None, place
        payloads.append(bytes(made.payload))
        assert (in_store(running, 1, letters.MASKED) is None) == (place != "sent"), place
        running.restart()
    before = in_store(running, 1, letters.MASKED)
    running.steps()
    assert in_store(running, 1, letters.MASKED) == before, "byte for byte"
    _, masked = vector(running)
    assert {*payloads, bytes(masked.payload)} == {payloads[0]}
    assert len(running.logged("charged")) == len(running.logged(RELEASED)) == 1
    assert Round.objects.get().release["sha256"] == masked.header.payload


def test_a_release_that_was_recorded_is_not_recorded_as_another(running: Running) -> None:
    """What the log says of a round is compared with the very vector: another round's record stands for none."""
    running.set_up()
    for number in (1, 2):
        running.open(number)
        running.steps()
    sha256 = [vector(running, number)[1].header.payload for number in (1, 2)]
    assert [record.fields["sha256"] for record in running.logged(RELEASED)] == sha256
    assert len(set(sha256)) == 2
    assert [vector(running, number)[0].audit.releases for number in (1, 2)] == [1, 2]


def test_a_release_from_before_a_restore_is_sent_again_as_it_was(running: Running) -> None:
    """A letter with other words under the same name would be equivocation, and refused."""
    running.set_up()
    running.open(1)
    running.steps()
    head = running.site.audit.public_head()
    running.site.home.fork.write_bytes(Fork.sign(running.site.identity, head, head).canonical())
    running.restart()
    running.steps()
    assert vector(running)[0].fork is None


# -- the answer to a survivor list -------------------------------------------------------------------------------------


def test_a_survivor_list_is_answered_once_and_written_down_before(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, by_then = Mailroom.send, []

    def seen(room: Mailroom, to: str, study: str, number: int, kind: str, *rest: Any) -> None:
        if kind == letters.UNMASK:
            by_then.append((len(running.logged("unmasked")), Round.objects.get().state))
        send(room, to, study, number, kind, *rest)

    running.set_up()
    manifest = running.open(1)
    running.steps()
    survivors = running.survive(manifest)
    monkeypatch.setattr(Mailroom, "send", seen)
    running.steps()
    running.steps()
    assert by_then == [(1, Round.State.UNMASKED)]
    emails = [header.sender for header in survivors.headers]
    assert Round.objects.get().survivors == emails
    (record,) = running.logged("unmasked")
    assert (record.fields["survivors"], record.fields["digest"]) == (4, sha256_hex(canonical_json(emails)))


#: Every place between a survivor list's being read and the answer to it.
ANSWERING: dict[str, Kill] = {
    "to be recorded": kill_before(AuditLog, "append_once", is_sent("unmasked")),
    "recorded": kill_after(AuditLog, "append_once", is_sent("unmasked")),
    "to be answered": kill_before(Journal, "commit", holds(UnmaskShares)),
    "answered": kill_after(Journal, "commit", holds(UnmaskShares)),
    "to be sent": kill_before(Mailroom, "send", is_sent(letters.UNMASK)),
    "sent": kill_after(Mailroom, "send", is_sent(letters.UNMASK)),
}


def test_killed_anywhere_a_survivor_list_has_one_answer(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.set_up()
    manifest = running.open(1)
    running.steps()
    running.survive(manifest)
    answers = []
    for place, kill in ANSWERING.items():
        running.restart()
        with monkeypatch.context() as patch:
            kill(patch)
            with pytest.raises(Killed):
                running.steps()
        assert (in_store(running, 1, letters.UNMASK) is None) == (place != "sent"), place
        state = running.journal.state
        assert state is not None
        assert state.open is not None
        answers += [state.open.answer] if state.open.answer is not None else []
    before = in_store(running, 1, letters.UNMASK)
    running.restart()
    running.steps()
    assert in_store(running, 1, letters.UNMASK) == before
    assert len(answers) == 3
    assert all(answer == answers[0] for answer in answers)
    assert len(running.logged("unmasked")) == 1


def forged(running: Running, survivors: SurvivorList) -> dict[str, bytes]:
    """Lists that a researcher may sign in place of the true one, and what is none of its."""
    own = next(header for header in survivors.headers if header.sender == OWN)
    others = tuple(header for header in survivors.headers if header.sender != OWN)

    def signed(by: str = RESEARCHER, **changes: Any) -> bytes:
        fields = {"round": 1, "manifest": survivors.manifest, "headers": survivors.headers, **changes}
        return SurvivorList.seal(running.keys[by], context=survivors.context, **fields).to_bytes()

    return {
        "too few": signed(headers=(own, others[0])),
        "without this hospital": signed(headers=others),
        "of another round": signed(round=2),
        "of another manifest": signed(manifest="ab" * 32),
        "one twice": signed(headers=(own, others[0], others[0])),
        "signed by another": signed(PEER),
        "changed": survivors.to_bytes().replace(others[0].payload.encode(), b"ab" * 32),
        "no list": b"[]",
        "empty": b"",
    }


@pytest.mark.parametrize(
    "lie",
    [
        "too few",
        "without this hospital",
        "of another round",
        "of another manifest",
        "one twice",
        "signed by another",
        "changed",
        "no list",
        "empty",
    ],
)
def test_a_list_that_is_not_of_this_round_opens_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """It is written down once, and the round waits: no share leaves (I8)."""
    running.set_up()
    manifest = running.open(1)
    running.steps()
    with monkeypatch.context() as patch:
        patch.setattr(running, "tell", lambda *_: None)
        survivors = running.survive(manifest)
    running.tell(1, letters.SURVIVORS, {}, forged(running, survivors)[lie])
    for _ in range(3):
        running.steps()
    assert running.heard(1, letters.UNMASK) is None
    assert Round.objects.get().state == Round.State.RELEASED
    assert running.logged("unmasked") == []
    assert len(running.logged("survivors_refused")) == 1
    state = running.journal.state
    assert state is not None
    assert state.open is not None
    assert state.open.answer is None


def test_nobody_but_the_researcher_names_survivors(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.set_up()
    manifest = running.open(1)
    running.steps()
    with monkeypatch.context() as patch:
        patch.setattr(running, "tell", lambda *_: None)
        survivors = running.survive(manifest)
    running.tell(1, letters.SURVIVORS, {}, survivors.to_bytes(), sender=PEER)
    running.steps()
    assert running.heard(1, letters.UNMASK) is None
    running.tell(1, letters.SURVIVORS, {}, survivors.to_bytes())
    running.steps()
    assert running.heard(1, letters.UNMASK)


# -- the consistency wave ----------------------------------------------------------------------------------------------


@pytest.fixture
def acknowledging(running: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[Running, SurvivorList]:
    """A round of a study with the consistency wave, whose survivors are named."""
    monkeypatch.setattr(StudyTerms, "consistency_wave", True)
    running.set_up()
    manifest = running.open(1)
    running.steps()
    return running, running.survive(manifest)


def acknowledged(running: Running, survivors: SurvivorList, *others: str) -> AckList:
    """What the researcher passes on once these have acknowledged the list, beside the hospital."""
    letter = running.heard(1, letters.ACKNOWLEDGE)
    assert letter is not None
    acks = [SurvivorAck.from_bytes(bytes(letter.blob or b""))]
    for email in others:
        running.states[email], ack = running.members[email].acknowledge(running.states[email], survivors)
        acks.append(ack)
    return AckList.seal(
        running.keys[RESEARCHER],
        context=survivors.context,
        round=1,
        manifest=survivors.manifest,
        acks=tuple(sorted(acks, key=lambda ack: ack.sender)),
    )


def test_shares_leave_once_enough_have_acknowledged_the_same_list(acknowledging: tuple[Running, SurvivorList]) -> None:
    running, survivors = acknowledging
    running.steps()
    assert running.heard(1, letters.ACKNOWLEDGE)
    assert running.heard(1, letters.UNMASK) is None
    assert running.logged("unmasked") == []
    peers = list(running.members)
    running.tell(1, letters.ACKNOWLEDGED, {}, acknowledged(running, survivors, *peers).to_bytes())
    running.steps()
    assert running.heard(1, letters.UNMASK)
    assert len(running.logged("unmasked")) == 1


def test_too_few_acknowledgements_open_nothing(acknowledging: tuple[Running, SurvivorList]) -> None:
    running, survivors = acknowledging
    running.steps()
    few = acknowledged(running, survivors, next(iter(running.members)))
    running.tell(1, letters.ACKNOWLEDGED, {}, few.to_bytes())
    for _ in range(2):
        running.steps()
    assert running.heard(1, letters.UNMASK) is None
    assert len(running.logged("survivors_refused")) == 1


def test_killed_after_it_acknowledged_it_acknowledges_the_same_again(
    acknowledging: tuple[Running, SurvivorList], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = acknowledging
    for kill in (
        kill_before(Journal, "commit", holds(SurvivorAck)),
        kill_after(Journal, "commit", holds(SurvivorAck)),
        kill_before(Mailroom, "send", is_sent(letters.ACKNOWLEDGE)),
    ):
        with monkeypatch.context() as patch:
            kill(patch)
            with pytest.raises(Killed):
                running.steps()
        assert running.heard(1, letters.ACKNOWLEDGE) is None
        running.restart()
    running.steps()
    before = in_store(running, 1, letters.ACKNOWLEDGE)
    assert before is not None
    running.restart()
    running.steps()
    assert in_store(running, 1, letters.ACKNOWLEDGE) == before
