"""Whose keys the secure sum believes: those that people have pinned, at each round, and no others (I9)."""

from __future__ import annotations

import pytest

from datasites.hospital.audit.entered import pinned_by_hand
from datasites.hospital.models import Round
from datasites.hospital.rounds.setup import OtherKeys
from datasites.study import letters
from datasites.study.identity import Identity
from datasites.study.roster import Roster
from tests.hospital.conftest import log_pins
from tests.hospital.running import OWN, RESEARCHER, Running, require_sat_out

pytestmark = pytest.mark.waits
PEER = "datasite@va.example.org"


def with_other_keys(running: Running, *emails: str) -> None:
    """Those parties hold other keys from now on, and the roster file says so; the log knows nothing of it."""
    for email in emails:
        running.keys[email] = Identity.generate(email)
    running.roster = Roster(
        entries=tuple(
            entry.model_copy(update={"public_key": running.keys[entry.email].public_key})
            for entry in running.roster.entries
        )
    )
    running.roster.save(running.site.home.roster)


def replace_key(running: Running, email: str) -> None:
    """A party's key was stolen: one person revokes it, and its new one is pinned."""
    before = Roster.load(running.site.home.roster).revoke(email)
    running.site.audit.append("unpinned", email=email, reason="stolen", person="ann")
    with_other_keys(running, email)
    before.pin(running.roster.get(email)).save(running.site.home.roster)
    log_pins(running.site, Roster(entries=(running.roster.get(email),)))


@pytest.mark.parametrize("party", [PEER, RESEARCHER])
def test_a_key_that_was_replaced_is_believed_in_no_later_round_and_the_new_one_from_the_next_epoch_on(
    running: Running, party: str
) -> None:
    running.set_up()
    replace_key(running, party)
    assert pinned_by_hand(running.site.home, Roster.load(running.site.home.roster).entries) == []
    running.open(1)
    running.steps()
    require_sat_out(running, 1)
    assert not running.logged("charged")
    running.states.pop(party, None)
    running.set_up(epoch=1, first_round=2)
    running.open(2)
    running.steps()
    assert running.heard(2, letters.MASKED)


def test_a_key_that_is_revoked_while_rows_are_at_work_masks_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.set_up()
    running.open(1)
    running.until_at_work()
    replace_key(running, PEER)
    running.steps()
    require_sat_out(running, 1)
    assert Round.objects.get().state == Round.State.FAILED


def test_a_party_that_is_revoked_ends_rounds(running: Running) -> None:
    running.set_up()
    home = running.site.home
    Roster.load(home.roster).revoke(PEER).save(home.roster)
    running.site.audit.append("unpinned", email=PEER, reason="left", person="ann")
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED) is None
    assert running.heard(1, letters.ABSTAINED)
    with pytest.raises(OtherKeys, match=f"{PEER} is not pinned any more"):
        running.run._setup.require_pinned_keys()


def test_keys_that_are_typed_into_the_roster_are_not_set_up_with(running: Running) -> None:
    with_other_keys(running, *(email for email in running.case.study.cohort.hospitals if email != OWN))
    running.offer()
    running.steps()
    assert running.run._setup.member is None
    (refused,) = running.logged("setup_refused")
    assert "not the entry that record" in refused.fields["reason"]


def test_keys_that_were_in_the_roster_during_a_setup_alone_protect_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where whoever can write the roster also got round the look at the offer."""
    true = running.site.home.roster.read_bytes()
    with_other_keys(running, *(email for email in running.case.study.cohort.hospitals if email != OWN))
    with monkeypatch.context() as patch:
        patch.setattr("datasites.hospital.rounds.setup.pinned_by_hand", lambda *_: [])
        running.set_up()
    running.site.home.roster.write_bytes(true)
    running.open(1)
    running.steps()
    require_sat_out(running, 1)
