"""Whom people have withdrawn or revoked is pinned for nobody, whatever is done to the roster file (`parties`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from datasites.hospital.audit.entered import pinned_by_hand
from datasites.hospital.people.roster import pin_compared, pin_party, propose_party, revoke_party, withdraw_party
from datasites.study.identity import IdentityError
from datasites.study.roster import Roster
from tests.hospital.desk import Desk
from tests.kills import Killed, kill_after, kill_before
from tests.study.entries import stranger


def test_a_withdrawal_is_logged_whatever_lies_in_the_roster_meanwhile(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever writes the file puts another entry under the address, and the withdrawn one afterwards."""
    site, entry = desk.site, stranger("east")
    row = propose_party(site, desk.login("ann"), entry.model_dump_json())
    before = site.home.roster.read_bytes()
    with monkeypatch.context() as patch:
        kill_before(Roster, "save")(patch)
        with pytest.raises(Killed):
            pin_party(site, desk.login("bob"), row.pk, entry.fingerprint)
    try:
        Roster.parse(before).pin(stranger("east")).save(site.home.roster)
        withdraw_party(site, desk.login("cyd"), row.pk)
        Roster.parse(before).pin(entry).save(site.home.roster)
        assert pinned_by_hand(site.home, [entry])
        site.home.roster.write_bytes(before)
        assert propose_party(site, desk.login("ann"), entry.model_dump_json()).pk, "it was no revocation"
    finally:
        site.home.roster.write_bytes(before)


def test_a_withdrawal_leaves_another_key_alone_that_is_pinned_under_the_address(desk: Desk) -> None:
    site, entry, other = desk.site, stranger("shell"), stranger("shell")
    row = propose_party(site, desk.login("ann"), entry.model_dump_json())
    before = site.home.roster.read_bytes()
    try:
        pin_compared(site, other)
        withdraw_party(site, desk.login("cyd"), row.pk)
        assert (len(pinned_by_hand(site.home, [entry])), pinned_by_hand(site.home, [other])) == (1, [])
    finally:
        site.home.roster.write_bytes(before)


@pytest.mark.parametrize("kill", [kill_before, kill_after])
def test_a_revocation_that_was_interrupted_is_undone_by_no_older_roster(
    desk: Desk,
    kill: Callable[[object, str], Callable[[Any], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, entry = desk.site, stranger("far")
    before = site.home.roster.read_bytes()
    pin_compared(site, entry)
    older = site.home.roster.read_bytes()
    try:
        with monkeypatch.context() as patch:
            kill(Roster, "save")(patch)
            with pytest.raises(Killed):
                revoke_party(site, desk.login("ann"), entry.email, "lost")
        site.home.roster.write_bytes(older)
        assert pinned_by_hand(site.home, [entry])
        revoke_party(site, desk.login("ann"), entry.email, "lost")
        assert entry.public_key in Roster.load(site.home.roster).revoked
    finally:
        site.home.roster.write_bytes(before)


def test_a_party_is_revoked_while_somebody_has_taken_it_out_of_the_roster(desk: Desk) -> None:
    """Else whoever writes the file could put it back once people have given up."""
    site, entry = desk.site, stranger("hidden")
    before = site.home.roster.read_bytes()
    pin_compared(site, entry)
    site.home.roster.write_bytes(before)
    revoke_party(site, desk.login("ann"), entry.email, "lost")
    assert pinned_by_hand(site.home, [entry])
    with pytest.raises(IdentityError, match="not pinned"):
        revoke_party(site, desk.login("ann"), entry.email, "lost")
