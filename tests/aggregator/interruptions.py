"""What may befall a run: a round cut short, a full disk, a state that is lost."""

from __future__ import annotations

import pytest

from datasites.aggregator.run import Run
from datasites.aggregator.run_files import RunFolder
from datasites.study.identity import Identity
from datasites.study.roster import Roster
from tests.researcher.hospitals import Federation
from tests.transport.parties import RESEARCHER


def lose(federation: Federation, how: str) -> None:
    """Damage what the researcher keeps of the present epoch (0)."""
    if how == "another key":
        federation.researcher.identity = Identity.generate(RESEARCHER)
        parties = (federation.researcher, *(hospital.party for hospital in federation.hospitals.values()))
        federation.researcher.roster = Roster(entries=tuple(party.entry() for party in parties))
        return
    path = federation.folder / ("context-0.json" if "context" in how else "aggregator-0.bin")
    if "gone" in how:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])


def begin_round(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the next round out and be interrupted."""
    with monkeypatch.context() as patch:
        patch.setattr(run, "_collect", lambda record: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.next_round()


def fail_once(
    monkeypatch: pytest.MonkeyPatch, name: str, error: type[BaseException] = OSError, holding: bytes = b""
) -> None:
    """Let the next write of this file, with these bytes in it, fail."""
    write = RunFolder.write

    def failing(files: RunFolder, path: str, data: bytes | memoryview) -> None:
        if path == name and holding in bytes(data):
            monkeypatch.setattr(RunFolder, "write", write)
            raise error("no space left on device")
        write(files, path, data)

    monkeypatch.setattr(RunFolder, "write", failing)
