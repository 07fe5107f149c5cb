"""The hospital's clock and randomness, fixed: what still differs between two runs differs because of the rows.

Both are put in place of their sources (`os.urandom`, key generation, `datetime`, `time`), so that no part of the
product has to know. Randomness comes from one stream for each place in the code that draws, so that a draw more or
less at one place shows there and disturbs no other.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import sys
import threading
import time
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from datasites.secagg import setup

BEGIN = datetime.datetime(2026, 6, 1, 9, 0, tzinfo=datetime.UTC).timestamp()
#: Rooms and libraries that take part in a study; the enclave keeps real time, since it waits for real processes.
_FOLLOW = (
    "datasites.",
    "tests.adversarial.neighbours.parties",
    "policies",
    "syft",
    "django.utils.timezone",
    "gzip",
    "tarfile",
)
_KEEP = ("datasites.enclave",)


class Clock:
    """Seconds since 1970, which pass only when `pass_time` is called. sleep: what a thread that sleeps does instead."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._common = BEGIN
        self._own = threading.local()
        self._sleep = sleep

    @property
    def now(self) -> float:
        """What the calling thread reads."""
        return self._common + getattr(self._own, "ahead", 0.0)

    @property
    def is_apart(self) -> bool:
        """Whether the calling thread's time passes for itself."""
        return hasattr(self._own, "ahead")

    def go_apart(self) -> None:
        """From here on, time passes in the calling thread alone: it works beside the others, who are not held up."""
        self._own.ahead = 0.0

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        if self.is_apart:
            self._own.ahead += max(0.0, seconds)
        else:
            self._common += max(0.0, seconds)

    def install(self) -> None:
        """Put this clock in place of the real one, in every module of `_FOLLOW` that is loaded."""
        clock = self
        real = datetime.datetime

        class Told(type):
            def __instancecheck__(cls, value: object) -> bool:
                return isinstance(value, real)

        class Moment(real, metaclass=Told):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
                return real.fromtimestamp(clock.now, tz)

            @classmethod
            def utcnow(cls) -> datetime.datetime:
                return real.fromtimestamp(clock.now, datetime.UTC).replace(tzinfo=None)

        dates = _module(datetime, datetime=Moment, date=datetime.date)
        times = _module(
            time,
            time=lambda: clock.now,
            time_ns=lambda: int(clock.now * 1e9),
            monotonic=lambda: clock.now - BEGIN + 1000.0,
            perf_counter=lambda: clock.now - BEGIN + 1000.0,
            sleep=clock._sleep,
        )
        instead: dict[int, Any] = {id(datetime): dates, id(real): Moment, id(time): times}
        instead |= {id(getattr(time, name)): getattr(times, name) for name in ("time", "time_ns", "monotonic", "sleep")}
        for name, module in list(sys.modules.items()):
            if name.startswith(_FOLLOW) and not name.startswith(_KEEP) and module is not None:
                for attribute, value in list(vars(module).items()):
                    if id(value) in instead:
                        setattr(module, attribute, instead[id(value)])


def _module(original: types.ModuleType, **changed: Any) -> types.ModuleType:
    copy = types.ModuleType(original.__name__)
    copy.__dict__.update(vars(original))
    copy.__dict__.update(changed)
    return copy


class Streams:
    """Bytes that look random, in a stream for each place that draws and each thread's name."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._drawn: defaultdict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    def draw(self, length: int) -> bytes:
        """The next bytes of the calling place's stream."""
        place = self._place()
        with self._lock:
            number = self._drawn[place]
            self._drawn[place] += 1
        return hashlib.shake_256(b"%s|%s|%d" % (self._seed, place.encode(), number)).digest(length)

    def _place(self) -> str:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "secrets", "random", "uuid"):
            frame = frame.f_back
        return f"{threading.current_thread().name} {frame.f_globals.get('__name__')} {frame.f_code.co_name}"

    def install(self) -> None:
        """Put these streams in place of the operating system's, and of keys that libraries draw by themselves."""
        os.urandom = self.draw
        random._urandom = self.draw
        for kind in (X25519PrivateKey, Ed25519PrivateKey):
            kind.generate = classmethod(lambda cls: cls.from_private_bytes(self.draw(32)))
        setup._SUITE = _Suite(self)


class _Suite:
    """Stands for HPKE, whose ephemeral keys can't be fixed: as long, and a function of what it encrypts."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def encrypt(self, plain: bytes, key: X25519PublicKey, info: bytes) -> bytes:
        ephemeral = X25519PrivateKey.from_private_bytes(self._streams.draw(32))
        own = ephemeral.public_key().public_bytes_raw()
        return own + self._cipher(ephemeral.exchange(key), own).encrypt(bytes(12), plain, info)

    def decrypt(self, sealed: bytes, key: X25519PrivateKey, info: bytes) -> bytes:
        own = bytes(sealed[:32])
        shared = key.exchange(X25519PublicKey.from_public_bytes(own))
        return self._cipher(shared, own).decrypt(bytes(12), bytes(sealed[32:]), info)

    @staticmethod
    def _cipher(shared: bytes, own: bytes) -> AESGCM:
        return AESGCM(hashlib.sha256(shared + own).digest())
