"""A store that is unavailable is told in the words of other outages: by the service, by `doctor`, and by a command."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import datasites.cli
from datasites.hospital import doctor
from datasites.hospital.outages import away
from datasites.hospital.site import Site, outage_of
from datasites.transport import store as store_module
from datasites.transport.store import Store, StoreUnreachable


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store to which nothing can be written for now."""
    monkeypatch.setattr(store_module, "RETRY_DELAYS", (0.001,))
    store = Store(str(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(errno.ECONNREFUSED, "no")

    monkeypatch.setattr(store.files, "write", fail)
    return store


def put(store: Store) -> None:
    store.put("a/x", b"1")


def test_the_service_the_doctor_and_a_command_say_the_same(
    site: Site, lost: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begins = f"store {lost.shown} is unavailable: cannot put "
    with pytest.raises(StoreUnreachable) as caught:
        put(lost)
    outage = outage_of(site.home, caught.value)
    assert outage is not None
    assert away(*outage).startswith(begins)
    assert away(*outage).endswith("check the network and the store; nothing is lost"), "it is tried again by itself"
    monkeypatch.setattr(doctor, "open_store", lambda home: lost)
    found = next(check for check in doctor.examine(site, ["store"]) if check.name == "store")
    assert found.state == "bad"
    assert found.message.startswith(begins)
    monkeypatch.setattr(datasites.cli, "app", lambda **_: put(lost))
    with pytest.raises(SystemExit) as ended:
        datasites.cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"datasites: {begins}")
    assert said.endswith("check the network and the store, then try again; nothing is lost\n")
