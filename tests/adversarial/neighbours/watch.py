"""What leaves a hospital, noted where it is sealed and where it is put into the store.

Each entry: when, what was done, under which name, the bytes before encryption (or the bytes themselves, where nothing
was encrypted), and how many bytes lie in the store.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass

_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Left:
    """One thing that another party could see."""

    time: float
    did: str
    name: str
    plain: bytes
    size: int


class Watch:
    """Keeps what has left. While `blind`, nothing is kept: the hospital's process is dead and only tidied up.

    expected: what left another run. `differs` then says whether something else has left here.
    """

    def __init__(self, expected: list[Left] | None = None) -> None:
        self.left: list[Left] = []
        self.blind = False
        self.differs = False
        self._expected = expected
        self._sealed: dict[bytes, bytes] = {}
        self._ids: dict[bytes, bytes] = {}

    def sealed(self, plain: bytes, envelope: bytes) -> None:
        """The hospital has encrypted something. Nothing has left before it is put."""
        self._sealed[hashlib.sha256(envelope).digest()] = plain

    def note(self, time: float, did: str, name: str, data: bytes = b"") -> None:
        """The hospital has done something with the store, or handed something out."""
        if self.blind:
            return
        plain = self._sealed.get(hashlib.sha256(data).digest())
        if plain is not None and plain.startswith(_GZIP):
            # A message of syft's; its random ids are numbered by their appearance.
            plain = _UUID.sub(self._number, gzip.decompress(plain))
        one = Left(round(time, 6), did, name, data if plain is None else plain, len(data))
        if self._expected is not None:
            self.differs |= self._expected[len(self.left) :][:1] != [one]
        self.left.append(one)

    def _number(self, found: re.Match[bytes]) -> bytes:
        return self._ids.setdefault(found.group(), b"id-%d" % len(self._ids))


def difference(one: list[Left], other: list[Left]) -> str:
    """In words, the first thing in which two runs differ for whoever looks on; empty where they don't."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        for field in ("did", "name", "plain", "size", "time"):
            here, there = getattr(a, field), getattr(b, field)
            if here != there:
                if isinstance(here, bytes):
                    here, there = _around(here, there)
                return f"{number}: {a.did} {a.name}: {field} {here!r}, and {there!r}"
    if len(one) != len(other):
        more = (one if len(one) > len(other) else other)[min(len(one), len(other))]
        return f"{len(one)} things left, and {len(other)}; the first that is missing: {more.did} {more.name}"
    return ""


def _around(here: bytes, there: bytes) -> tuple[bytes, bytes]:
    at = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    part = slice(max(0, at - 120), at + 80)
    return here[part], there[part]
