"""When a release leaves: at a tick that was fixed before any row was looked at.

How long a round takes depends on its rows: on how many were sampled, if on nothing else. So the time at which a vector
leaves would be a message without noise. A release therefore leaves a fixed number of ticks after its round's letter was
taken; the number is part of what people approve, measured from plan and model on invented rows as many as the hospital
declares (`Worker.measure`).

Claim: as long as the work of a round fits into its ticks, the moment at which a release leaves is a function of when
the letter came. Where the work overruns, the release leaves at the next whole tick, so that what shows is how many
ticks it was late. Assumes: a clock that rows don't move; what is done after the tick (masking, policies, log, journal,
sending) takes a time that depends on sizes which are public. The log, and evidence with it, holds times: so other work
on rows that something waits for (preparing them) is followed by a wait for the next whole tick before anything is
logged. Not claimed: what others on the same machine see of its load.
"""

from __future__ import annotations

import math
import time

#: Seconds of a tick.
TICK = 0.05
#: A release that has missed its tick by more leaves at the next one.
GRACE = TICK / 5
#: Room in the number of ticks above what was measured: an unlucky sample and other work on the machine; and ticks for
#: what no measurement on rows holds, the policies, the ledger and the log.
_ROOM, _SPARE = 1.5, 10


def ticks_for(seconds: float) -> int:
    """Ticks to allow a round whose work took `seconds` on invented rows; at least eleven."""
    return max(1, math.ceil(_ROOM * seconds / TICK)) + _SPARE


def leaves_at(started: float, ticks: int, now: float) -> float:
    """When a round that started at `started` and is done `now` releases, in seconds of the same clock.

    The tick that was fixed, or if that has passed the first one after `now`.
    """
    if ticks < 1:
        raise ValueError(f"ticks: {ticks}; a release waits for one tick or more")
    late = math.ceil((now - started) / TICK)
    return started + max(ticks, late) * TICK


def sleep_to_tick(started: float) -> None:
    """Sleep to the next whole tick since `started` (monotonic), after work on rows that something public follows."""
    now = time.monotonic()
    time.sleep(max(0.0, leaves_at(started, 1, now) - now))
