"""When a release leaves: at a tick that was fixed before any row was looked at.

How long a round takes depends on its rows: on how many were sampled, if on nothing else. So the time at which a vector
leaves would be a message without noise. A release therefore leaves a fixed number of ticks after its round's letter was
read; the number is part of what people approve: the longest round that the study holds is run on invented rows, as
many as the hospital declares records (`invented_rows`, `Worker.measure`), and `ticks_for` allows more. It is run while
no round is at work, and stopped, with its clock, when one begins (`machine`); so rows of other studies have no part in
the number but for what `machine` doesn't claim.

Claim: as long as the work of a round fits into its ticks, the moment at which a release leaves is a function of when
the letter was read, which is public. Where the work overruns, the release leaves at the next whole tick, so that what
shows is how many ticks it was late. Assumes: a clock that rows don't move; what is done after the tick (masking,
policies, log, journal, sending) takes a time that depends on sizes which are public.

When it fits: work is done row by row in slots of a fixed number, so its time is at most a + b n for n rows that are
worked on. It fits where the table holds no more records than are declared, neither a side of the split nor a sample
holds more than `_ROOM` times its share of them, and the machine is not so much slower than when it was measured. A
patient with a large part of all records can break the second, a table that has grown the first: people are told of
that by `datasites dataset check` and `datasites doctor`.
A round after those whose prices are kept (`OpenCase.price_ahead`), or one charged out of order, has its own worked out
within its ticks, and may overrun them by the seconds that this takes.

A worker starts with the rows when a study is approved, when the service starts, and after a withdrawal and where one is
undone, moments that are public; not before the template is there from which it is forked, so that it takes what it took
when that was measured. Workers of a datasite are started one after the other, each in a span of `loading_ticks`
(`Machine.load`): what a start took on mock rows, with room, and what reading what is declared takes. Whoever withdraws
before a span begins is left out by it; later, another span follows. No letter of a round is read before its worker's
span is over, and the round is worked on without those who had withdrawn then. A letter that the service has seen before
waits; until then its round is not charged, and no other study waits for it (`machine`). It begins at that very moment,
however long other things kept the service from it, or where they did for a tick or more, a number of whole ticks later
(`begins_at`). Assumes that a start takes no longer than its span while a round of another study is at work. Not
claimed: of a worker that is started anew after a crash, within a round or once after each round or span, that loading
the rows doesn't show; while people withdraw again and again within one span, that a round begins: its letter waits for
the last of them.

The log, and evidence with it, holds times. So reading the records for a study takes a number of ticks that follows
from declared figures (`reading_ticks`), before anything is logged or leaves; a table that takes longer shows at the
next whole tick. The process that reads is started, and has read the mock, before that time begins (`reading`). The
lists of patients that are read beside it (`patients`) are allowed for by what all datasets of the hospital declare.
Not claimed: of lists that hold more, that their reading doesn't show. Everybody who was ever kept stays on them, so
they grow with each export in which rows were written anew, beyond it after some ten of the whole table; and a
population that no dataset is of any more declares nothing. What keeps the database from others while records are kept
doesn't grow with them (`patients`). Not claimed: what others on the same machine see of its load; that other threads
of this process never wait for one call on the table, while it is read or its rows are handed to a worker
(`submissions`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

#: Seconds of a tick.
TICK = 0.05
#: A release that has missed its tick by more leaves at the next one.
GRACE = TICK / 5
#: Room in the number of ticks above what was measured: an unlucky sample and other work on the machine; and ticks for
#: what no measurement on rows holds, the policies, the ledger and the log.
_ROOM, _SPARE = 1.5, 6
#: Seconds to allow for reading a record, and each value that it is encoded to: some three times what they take on a
#: processor of 2020. And ticks beside, for files and keys.
_RECORD, _VALUE, _READING_SPARE = 50e-6, 3e-6, 4
#: And for reading a record's place on a list of patients: some ten times what its two digests take.
_LISTED = 50e-6
#: Seconds after which one who sleeps looks whether it still should.
_LOOKS = 0.2
#: Ticks that a worker's start takes for cases that an earlier version examined, which didn't measure it.
USUAL_START = 300


def invented_rows(records: int, held_out: float) -> tuple[int, int]:
    """Return the training and held-out rows to invent for so many declared records; never a count of rows."""
    return math.ceil(records * (1 - held_out)), math.ceil(records * held_out)


def ticks_for(seconds: float) -> int:
    """Return the ticks to allow a round whose work took `seconds` on invented rows; at least seven."""
    return max(1, math.ceil(_ROOM * seconds / TICK)) + _SPARE


def reading_ticks(records: int, values: int, listed: int = 0) -> int:
    """Return the ticks for reading `records`, as declared, with `values` numbers each; also where they can't be read.

    listed: records that are declared for all whose patients stand on lists that are read as well.
    """
    seconds = records * (_RECORD + values * _VALUE) + listed * _LISTED
    return max(1, math.ceil(seconds / TICK)) + _READING_SPARE


def loading_ticks(start: int, records: int, values: int) -> int:
    """Return the ticks until a worker has its rows that takes `start` of them to start, with `records` as declared."""
    return start + reading_ticks(records, values)


def begins_at(moment: float, now: float) -> float:
    """Say when a round starts that was to start at `moment` and is begun `now`, later: then, or whole ticks after it.

    What it loses so is less than a tick, which is allowed for.
    """
    return moment + max(0, math.floor((now - moment) / TICK)) * TICK


def leaves_at(started: float, ticks: int, now: float) -> float:
    """Say when a round that started at `started` and is done `now` releases, in seconds of the same clock.

    The tick that was fixed, or if that has passed the first one after `now`.
    """
    if ticks < 1:
        raise ValueError(f"ticks: {ticks}; a release waits for one tick or more")
    late = math.ceil((now - started) / TICK)
    return started + max(ticks, late) * TICK


def sleep_to_tick(started: float, ticks: int, check: Callable[[], None]) -> None:
    """Sleep until `ticks` after `started` (monotonic), or to the next whole one: after work on rows, before the log.

    check: called now and then, and at the end; raises what ends the sleep.
    """
    due = leaves_at(started, ticks, time.monotonic())
    while (left := due - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _LOOKS))
    check()
