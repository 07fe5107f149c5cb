"""Pages of the audit log, newest first, read from its end: a page costs the same however long the log is.

For people to look through: it checks no chain and no signature. `audit.verify` says whether the log is sound.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasites.study.audit_chain import LogRecord

#: At most this many bytes are searched for one page; then the page says how far it came.
SEARCHED = 4 * 1024 * 1024
_BLOCK = 64 * 1024
#: Fields of records that name who did or entered something here.
BY = ("person", "by", "entered_by", "confirmed_by")


@dataclass(frozen=True)
class Filter:
    """Which records to show; an empty field shows all. `contains` may be anywhere in the record.

    person: who did or entered what the record tells, by name. since, until: days of UTC, both included.
    """

    kind: str = ""
    contains: str = ""
    person: str = ""
    since: datetime.date | None = None
    until: datetime.date | None = None

    def matches(self, line: bytes) -> bool:
        """Say whether a raw line may match, before it is parsed: the log writes text so that it is found as it is."""
        if self.kind and f'"kind":{json.dumps(self.kind)}'.encode() not in line:
            return False
        wanted = [part.casefold() for part in (self.contains, self.person) if part]
        text = line.decode("utf-8", errors="replace").casefold() if wanted else ""
        return all(part in text for part in wanted)

    def fits(self, record: LogRecord) -> bool:
        """Say whether a record of a line that may match does."""
        day = record.time[:10]
        if (self.since and day < self.since.isoformat()) or (self.until and day > self.until.isoformat()):
            return False
        return not self.person or self.person.casefold() in (name.casefold() for name in people_of(record))


def people_of(record: LogRecord) -> tuple[str, ...]:
    """Return the names of the people who did or entered what a record tells, in the order of `BY`."""
    return tuple(name for key in BY if isinstance(name := record.fields.get(key), str) and name)


@dataclass(frozen=True)
class AuditPage:
    """Some records, newest first. `older` is where the next page begins (a position in the file), 0 at the end."""

    records: tuple[LogRecord, ...]
    older: int


def audit_page(path: Path, wanted: Filter, before: int = 0, size: int = 50) -> AuditPage:
    """Return up to `size` records that match, of those that end before byte `before` (0: from the end)."""
    found: list[LogRecord] = []
    length = path.stat().st_size
    start = before if 0 < before < length else length
    position = start
    for position, line in _backwards(path, start):
        if wanted.matches(line) and (record := _record(line)) is not None and wanted.fits(record):
            found.append(record)
        if len(found) == size or start - position > SEARCHED:
            break
    return AuditPage(tuple(found), position if position > 0 else 0)


def _record(line: bytes) -> LogRecord | None:
    try:
        return LogRecord(**json.loads(line))
    except (ValueError, TypeError):
        # A torn last line, or a position that is not the beginning of a record: nothing to show.
        return None


def _backwards(path: Path, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (position, line) of the lines that end before `end`, last first."""
    with path.open("rb") as file:
        rest, position = b"", end
        while position > 0:
            begin = max(0, position - _BLOCK)
            file.seek(begin)
            block = file.read(position - begin) + rest
            lines = block.split(b"\n")
            # The first piece may have begun before this block.
            rest = lines[0]
            at = begin + len(block)
            for line in reversed(lines[1:]):
                at -= len(line)
                if line:
                    yield at, line
                at -= 1
            position = begin
        if rest:
            yield 0, rest
