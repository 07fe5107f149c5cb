"""The secure sum over letters: what was sent is sent again as it was, and no kill leaves it between two epochs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from datasites.aggregator import secure_sum
from datasites.aggregator.gather import RunError
from datasites.aggregator.manifests import manifest_of
from datasites.aggregator.run_files import RunFolder
from datasites.aggregator.secure_sum import SecureSum, Survivors, Wait
from datasites.secagg.aggregator_state import OpenedSum
from datasites.secagg.errors import BadTerms
from datasites.study import letters
from datasites.study.canonical import sha256_hex
from datasites.study.identity import Identity, IdentityError
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster
from datasites.study.tensors import Parameter
from datasites.transport.mailroom import Mailroom, letter_key
from tests.kills import Killed, kill_after, kill_before
from tests.researcher.hospitals import SHARE, Federation
from tests.study.entries import roster_of
from tests.study.studies import HEART
from tests.transport.parties import RESEARCHER

pytestmark = pytest.mark.waits

PARAMETERS = (Parameter(name="weight", shape=(5,)),)
MODEL = np.zeros(5, np.float32).tobytes()


class Sum:
    """A secure sum among the hospitals of a federation, and each step of it as a run takes them."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self.epoch = federation, -1
        self.emails = tuple(sorted(federation.hospitals))
        federation.folder.mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        """A new process reads what the last one has saved."""
        party = self.federation.researcher
        files, study = RunFolder(self.federation.folder), self.federation.study.hash
        self.sum = SecureSum(party.identity, party.roster, party.mailroom, files, study, self.epoch)

    def save(self, epoch: int) -> None:
        """As a run keeps the number of its epoch."""
        self.epoch = epoch

    def set_up(self, patience: float = 30.0) -> tuple[str, ...]:
        if self.epoch < 0:
            self.sum.new_epoch(self.federation.study.terms, self.emails, 1, self.save)
        return self.sum.set_up(self.emails, patience)

    def wait(self, timeout: float = 20.0) -> Wait:
        return Wait(frozenset(self.emails), 3.0, timeout)

    def broadcast(self, number: int = 1) -> None:
        manifest = self.sum.opened(number) or manifest_of(
            self.federation.study.terms, PARAMETERS, self.sum.context, number, self.sum.available(), sha256_hex(MODEL)
        )
        self.sum.broadcast(manifest, MODEL)

    def collect(
        self, number: int = 1, timeout: float = 20.0, masked: Callable[..., None] = lambda *_: None
    ) -> Survivors:
        return self.sum.collect(number, self.wait(timeout), masked, {letters.ABSTAINED: lambda letter: None})

    def round(self, number: int = 1) -> OpenedSum:
        """A whole round, or what is left of it."""
        self.broadcast(number)
        return self.sum.unmask(number, self.collect(number), self.wait())[0]

    def letter(self, to: str, kind: str, number: int = 1) -> bytes | None:
        """Ours to a hospital, as it lies in the store."""
        store = self.federation.researcher.mailroom.store
        found: bytes | None = store.get(letter_key(RESEARCHER, self.federation.study.hash, to, number, kind))
        return found


@pytest.fixture
def total(federation: Federation) -> Sum:
    return Sum(federation)


def check(opened: OpenedSum, hospitals: int = 4) -> None:
    """Each hospital adds 0.5, at a weight of its share."""
    assert len(opened.survivors) == hospitals
    np.testing.assert_allclose(opened.sums["update"], hospitals * 0.5 * SHARE, atol=1e-4)
    np.testing.assert_allclose(opened.sums["weight"], hospitals * SHARE, atol=1e-4)


# -- killed ------------------------------------------------------------------------------------------------------------

#: What the aggregator sends, in order, and in which round of letters.
SENT = (
    (letters.offer_kind(0), letters.SETUP_ROUND),
    (letters.enrolment_kind(0), letters.SETUP_ROUND),
    (letters.ROUND, 1),
    (letters.SURVIVORS, 1),
)


def is_ours(kind: str) -> Callable[..., bool]:
    return lambda room, *letter, **_: room.email == RESEARCHER and kind in letter


def test_killed_before_and_after_each_message_it_goes_on_where_it_was(
    total: Sum, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is sent again byte for byte, so each hospital answers once; and the sum is right."""
    opened: list[OpenedSum] = []
    lying: dict[tuple[str, int], bytes | None] = {}

    def go_on() -> None:
        total.set_up()
        opened.append(total.round())

    for kind, number in SENT:
        for kill in (kill_before, kill_after):
            with monkeypatch.context() as patch:
                kill(Mailroom, "send_all", is_ours(kind))(patch)
                with pytest.raises(Killed):
                    go_on()
            sent = total.letter(total.emails[0], kind, number)
            assert (sent is None) == (kill is kill_before), kind
            total.restart()
        lying[kind, number] = sent
    go_on()
    (result,) = opened
    check(result)
    for (kind, number), sent in lying.items():
        assert total.letter(total.emails[0], kind, number) == sent, kind
    for hospital in total.federation.hospitals.values():
        assert hospital.charged == [1], "one manifest, and one vector"
        assert hospital.releases == 1


def test_a_state_that_could_not_be_saved_is_not_gone_on_from(total: Sum, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it was sent, and in memory the last one stays."""
    total.set_up()
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
        with pytest.raises(OSError, match="no space"):
            total.broadcast()
    assert total.letter(total.emails[0], letters.ROUND) is None
    assert not total.sum.has_begun(1)
    check(total.round())


def test_an_interrupted_round_is_gone_through_again_from_what_is_on_disk(total: Sum) -> None:
    """In memory it may be half opened; the sum that comes of it is the same."""
    total.set_up()
    total.broadcast()
    first = total.collect()
    total.sum.forget_unsaved()
    assert total.collect() == first
    total.restart()
    again = total.collect()
    assert again.emails == first.emails, "the survivors that were named stay"
    check(total.sum.unmask(1, again, total.wait())[0])


# -- epochs ------------------------------------------------------------------------------------------------------------


def test_an_epoch_without_everybody_keeps_the_approved_threshold(tmp_path: Path) -> None:
    """Five hospitals, t = 4: four may set an epoch up with t = 4, three may not with t = 3."""
    heart = StudyPackage.read(HEART).study
    emails = tuple(f"site@h{n}.example.org" for n in range(5))
    terms = heart.model_copy(
        update={"cohort": heart.cohort.model_copy(update={"hospitals": emails, "threshold": None})}
    )
    parties = [Identity.generate(email) for email in (heart.researcher, *emails)]
    mailroom = cast("Mailroom", None)  # nothing is sent before `set_up`
    total = SecureSum(parties[0], roster_of(parties), mailroom, RunFolder(tmp_path), "5" * 64, -1)
    total.new_epoch(terms, emails[:4], 1)
    assert total.context.threshold == terms.cohort.survivors_needed == 4
    with pytest.raises(BadTerms, match="3 hospitals are fewer than the threshold 4"):
        total.new_epoch(terms, emails[:3], 1)


def test_an_epoch_is_the_present_one_once_its_number_is_saved(total: Sum) -> None:
    """Killed before, or refused, the last one goes on with all that it had begun."""
    total.set_up()
    total.broadcast()
    terms, stranger = total.federation.study.terms, "datasite@elsewhere.example.org"

    def kill(_: int) -> None:
        raise Killed

    attempts: tuple[tuple[type[BaseException], tuple[str, ...], Callable[[int], None]], ...] = (
        (Killed, total.emails, kill),
        (BadTerms, total.emails[:2], total.save),
        (IdentityError, (*total.emails, stranger), total.save),
    )
    for refusal, hospitals, save in attempts:
        with pytest.raises(refusal):
            total.sum.new_epoch(terms, hospitals, 2, save)
        assert (total.sum.epoch, total.epoch, total.sum.has_begun(1)) == (0, 0, True)
    total.restart()
    check(total.round())
    total.sum.new_epoch(terms, total.emails, 2, total.save)
    assert (total.sum.epoch, total.sum.is_enrolled) == (1, False)
    with pytest.raises(AssertionError):
        total.sum.late()


def test_the_setup_of_an_epoch_removes_what_those_before_it_have_left(total: Sum) -> None:
    total.set_up()
    check(total.round())
    total.sum.new_epoch(total.federation.study.terms, total.emails, 2, total.save)
    assert set(total.set_up()) == set(total.emails)
    check(total.round(2))
    mailbox = total.federation.researcher.mailroom.mailbox(total.federation.study.hash)
    setups = [letters.setup_epoch(kind) for number, kind, _ in mailbox if number == letters.SETUP_ROUND]
    assert {setup[1] for setup in setups if setup} == {1}
    kept = {path.name for path in total.federation.folder.iterdir()}
    assert {"aggregator-0.bin", "enrolment-0.json"} & kept == set()
    assert {"aggregator-1.bin", "enrolment-1.json", "context-1.json"} <= kept


def test_an_epoch_covers_its_rounds_and_days_and_what_it_has_begun(total: Sum, monkeypatch: pytest.MonkeyPatch) -> None:
    total.set_up()
    total.broadcast()
    rounds = total.sum.context.rounds
    assert [total.sum.is_over(number) for number in (1, rounds[-1], rounds[-1] + 1)] == [False, False, True]
    later = total.sum.context.expires + datetime.timedelta(days=1)
    monkeypatch.setattr(secure_sum, "today", lambda: later)
    assert [total.sum.is_over(number) for number in (1, 2)] == [False, True], "round 1 was begun"


@pytest.mark.parametrize("damage", ["context-0.json", "aggregator-0.bin", "enrolment-0.json", "another key"])
def test_a_state_that_is_lost_or_of_another_key_is_said_to_be(total: Sum, damage: str) -> None:
    total.set_up()
    if damage == "another key":
        total.federation.researcher.identity = Identity.generate(RESEARCHER)
    else:
        path = total.federation.folder / damage
        path.write_bytes(path.read_bytes()[:-1])
    total.restart()
    assert (total.sum.is_lost, total.sum.is_set_up, total.sum.is_enrolled) == (True, False, False)
    assert not total.sum.has_begun(1)
    with pytest.raises(RunError, match="its state is lost; `set_up` begins an epoch"):
        total.sum.available()


# -- hospitals that are late, gone, or lie -----------------------------------------------------------------------------


def test_who_comes_too_late_for_the_setup_is_out_of_the_epoch_and_known(total: Sum) -> None:
    late, silent = (total.federation.hospitals[email] for email in total.emails[:2])
    late.there = False
    assert len(total.set_up(1.0)) == 3
    assert (total.sum.is_set_up, total.sum.late()) == (True, set())
    late.there = True
    total.federation.wait_for_letter(late, letters.certificate_kind(0))
    assert total.sum.late() == {late.email}
    assert total.sum.replaced() == set()
    entry = silent.party.entry().model_copy(update={"public_key": Identity.generate(silent.email).public_key})
    party = total.federation.researcher
    party.roster = Roster(entries=tuple(e if e.email != silent.email else entry for e in party.roster.entries))
    total.restart()
    assert total.sum.replaced() == {silent.email}
    check(total.round(), 3)


def test_fewer_than_the_threshold_open_no_round(total: Sum) -> None:
    """At the setup, and with their vectors; who is asked again goes on."""
    gone = [total.federation.hospitals[email] for email in total.emails[:2]]
    for hospital in gone:
        hospital.silent_at.add("ready")
    with pytest.raises(RunError, match=r"2 hospitals hold each other's shares, the threshold is 3; start"):
        total.set_up(1.0)
    assert (total.sum.is_enrolled, total.sum.is_set_up) == (True, False)
    for hospital in gone:
        hospital.silent_at.clear()
        hospital.say_ready()
        hospital.silent_at.add("masked")
    total.set_up()
    total.broadcast()
    with pytest.raises(RunError, match="2"):
        total.collect(timeout=1.0)
    assert total.letter(total.emails[3], letters.SURVIVORS) is None, "nobody is asked for shares"


def test_a_vector_whose_letter_is_refused_is_not_in_the_sum(total: Sum) -> None:
    liar = total.emails[0]
    total.set_up()
    total.broadcast()

    def refuse(letter: Any, _: letters.Masked) -> None:
        if letter.sender == liar:
            raise RunError("its head is of another log")

    survivors = total.collect(masked=refuse)
    assert survivors.emails == total.emails[1:]
    assert survivors.refused == (f"{liar}: its head is of another log",)
    assert total.letter(liar, letters.SURVIVORS) is None
    total.restart()
    assert total.collect().emails == survivors.emails, "who was told, and who was not, stays so"
    check(total.sum.unmask(1, survivors, total.wait())[0], 3)


def test_where_too_few_answer_nothing_is_learnt_until_they_do(total: Sum) -> None:
    silent = [total.federation.hospitals[email] for email in total.emails[:2]]
    for hospital in silent:
        hospital.silent_at.add("unmask")
    total.set_up()
    total.broadcast()
    survivors = total.collect()
    with pytest.raises(RunError, match="round 1: the sum could not be opened: too few survivors answered"):
        total.sum.unmask(1, survivors, total.wait(1.0))
    for hospital in silent:
        hospital.silent_at.clear()
        with total.federation.lock:
            answer = hospital.state.open.answer  # type: ignore[union-attr]
            hospital._send(letters.UNMASK, {}, answer.to_bytes(), 1)  # type: ignore[union-attr]
    total.restart()
    check(total.sum.unmask(1, total.collect(), total.wait())[0])


def test_a_hospital_that_can_not_be_written_to_is_as_good_as_gone(total: Sum) -> None:
    """Its key is pinned no more."""
    gone, party = total.emails[0], total.federation.researcher
    total.set_up()
    party.control.pin(party.roster.without(gone))
    total.broadcast()
    assert total.letter(gone, letters.ROUND) is None
    survivors = total.sum.collect(1, Wait(frozenset(total.emails[1:]), 1.0, 20.0), lambda *_: None, {})
    assert survivors.emails == total.emails[1:]
    check(total.sum.unmask(1, survivors, total.wait())[0], 3)
