"""A store that meddles with chosen letters: what `scripts/show_hostile_store.py` and its tests let loose on a study.

A `Trick` is played on the first letter that is put at its `Point` (and on what lies beside it), then the store is
honest again, as far as the trick allows. Whatever is done is done to files, by somebody who has no party's keys.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasites.transport.store import Store

#: Letters of a study from setup to close, by the names under which they lie in a mailbox.
POINTS = {
    "offer": r"00000000\.offer-0\.",
    "certificate": r"00000000\.certificate-0\.",
    "enrolment": r"00000000\.enrolment-0\.",
    "shares": r"00000000\.shares-0\.",
    "ready": r"00000000\.ready-0\.",
    "round": r"00000002\.round\.",
    "masked": r"00000002\.masked\.",
    "survivors": r"00000002\.survivors\.",
    "unmask": r"00000002\.unmask\.",
    "close": r"00000000\.close\.",
}

Trick = Callable[["HostileStore", Path, bytes], None]


def _drop(store: HostileStore, path: Path, data: bytes) -> None:
    """It never comes."""


def _delete_later(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.unlink()


def _delay(store: HostileStore, path: Path, data: bytes) -> None:
    store.later(1.5, lambda: path.write_bytes(data))


def _repeat(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for seconds in (0.5, 1.0, 2.0):
        store.later(seconds, lambda: path.write_bytes(data))


def _replay(store: HostileStore, path: Path, data: bytes) -> None:
    """As it is, and under the name of every later round."""
    path.write_bytes(data)
    _, _, rest = path.name.partition(".")
    for number in range(5):
        if (replayed := path.with_name(f"{number:08d}.{rest}")) != path:
            replayed.write_bytes(data)


def _swap(store: HostileStore, path: Path, data: bytes) -> None:
    """Under its name another letter of the mailbox, and it under that one's."""
    others = sorted(other for other in path.parent.iterdir() if other != path and other.is_file())
    path.write_bytes(others[-1].read_bytes() if others else data)
    if others:
        others[-1].write_bytes(data)


def _truncate(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])


def _half_written(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])
    store.later(0.4, lambda: path.write_bytes(data))


def _empty(store: HostileStore, path: Path, data: bytes) -> None:
    path.touch()


def _forge(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(os.urandom(len(data)))


def _flip(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _flood(store: HostileStore, path: Path, data: bytes) -> None:
    """A thousand letters of one byte, under names that letters of this sender have."""
    path.write_bytes(data)
    sender = path.name.partition(".")[2].partition(".")[2]
    for number in range(500):
        path.with_name(f"00000000.offer-{number + 1}.{sender}").write_bytes(b"x")
        path.with_name(f"{number + 5:08d}.round.{sender}").write_bytes(b"x")


def _flood_of_bytes(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sender = path.name.partition(".")[2].partition(".")[2]
    for number in range(20):
        path.with_name(f"00000000.offer-{number + 1}.{sender}").write_bytes(bytes(1024 * 1024))


def _deep(store: HostileStore, path: Path, data: bytes) -> None:
    made = Path(store.url, "made")
    (made / "/".join("d" * 60)).mkdir(parents=True)
    made.rename(path)


def _long_names(store: HostileStore, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for name in ("x" * 255, "00000001.round." + "y" * 200, "-", "%", "00000001", "é", "a b", "\n"):
        path.with_name(name).write_bytes(data)
    Path(os.fsdecode(os.fsencode(path.parent) + b"/\xff\xfe")).write_bytes(data)


def _link(store: HostileStore, path: Path, data: bytes) -> None:
    path.symlink_to("/etc/passwd")


def _pipe(store: HostileStore, path: Path, data: bytes) -> None:
    os.mkfifo(path)


def _sparse(store: HostileStore, path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _wrong_kind(store: HostileStore, path: Path, data: bytes) -> None:
    """A true letter of the same sender to the same recipient, of another kind or round; else one to somebody else."""
    sender = path.name.partition(".")[2].partition(".")[2]
    others = [other for other in sorted(path.parent.parent.rglob(f"*.{sender}")) if other != path and other.is_file()]
    path.write_bytes(others[0].read_bytes() if others else data[::-1])


TRICKS: dict[str, Trick] = {
    "drop": _drop,
    "drop three times": _drop,
    "delete": _delete_later,
    "delay": _delay,
    "repeat": _repeat,
    "replay in other rounds": _replay,
    "swap": _swap,
    "truncate": _truncate,
    "half written": _half_written,
    "empty": _empty,
    "forge": _forge,
    "flip a bit": _flip,
    "flood": _flood,
    "flood of bytes": _flood_of_bytes,
    "deep folder": _deep,
    "odd and long names": _long_names,
    "link": _link,
    "pipe": _pipe,
    "sparse file": _sparse,
    "wrong kind": _wrong_kind,
}
#: Those that are played again when the same letter is put again: how often in all.
TIMES = {"drop three times": 3}


@dataclass
class Planned:
    """One trick at one point, played up to `most` times on the first letter there, whose path is then `on`."""

    point: str
    trick: Trick
    most: int
    played: int = 0
    on: Path | None = field(default=None)


class HostileStore(Store):
    """See the module's text. plans: (point, trick) by name. about: on letters to or from this party only."""

    def __init__(self, url: str, plans: Sequence[tuple[str, str]], about: str = "") -> None:
        super().__init__(url)
        self._about = about
        self._plans = [Planned(POINTS[point], TRICKS[trick], TIMES.get(trick, 1)) for point, trick in plans]
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []

    @property
    def played(self) -> tuple[int, ...]:
        """How often each of the plans was played."""
        return tuple(plan.played for plan in self._plans)

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """As `Store.put`, unless it is this letter's turn."""
        path = Path(self.url, key)
        with self._lock:
            due = next((plan for plan in self._plans if self._is_due(plan, key, path)), None)
            if due is not None:
                due.played, due.on = due.played + 1, path
        if due is None:
            super().put(key, data)
            return
        # Without the lock: a flood takes its time, and holds up nobody who puts another letter.
        path.parent.mkdir(parents=True, exist_ok=True)
        _free(path)
        due.trick(self, path, bytes(data))

    def _is_due(self, plan: Planned, key: str, path: Path) -> bool:
        if plan.played >= plan.most or plan.on not in (None, path):
            return False
        return key.startswith("mail/") and self._about in key and re.match(plan.point, path.name) is not None

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something to the folder after a while, if it can still be done."""

        def try_it() -> None:
            try:
                act()
            except OSError:
                return

        timer = threading.Timer(seconds, try_it)
        self._timers.append(timer)
        timer.start()

    def end(self) -> None:
        """Wait until all that was to be done later is done."""
        for timer in self._timers:
            timer.join()


def _free(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
