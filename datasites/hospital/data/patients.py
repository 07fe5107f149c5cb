"""Who a row is about: identities of patients, and whether the same ones stand in two populations.

With a patient column a patient is the pseudonym that stands in it. Without one each row is a patient, named by a keyed
digest of its content (all columns of the source, as they stand there) and its number among equal rows: whatever order
rows stand in, and whichever of them is taken away, all others keep their names. A row that is corrected gets another
name, and so maybe another side; such a dataset charges both sides for everything.

Budgets hold per population, so a patient who stands in two of them would have two. Digests of all patients whose
records were prepared are kept per population under one key of the hospital, and of all their rows, so that one table
is known whatever column is said to name patients; they are compared with those of the others. What this can't see: a
patient under another pseudonym in a row that was written anew.

**Claim.** (1) Nobody who was kept is forgotten, whichever threads and processes keep patients of one population at
once. (2) A list that lacks somebody, since an older one or none was put in its place, is no list of all: whoever stands
in another population is refused there until two people say that the two are other people, and that stays so. For each
time that patients are kept, whoever they are and whether or not there are new ones, a fresh random token is written
into the list, with the one before, and then into the audit log (I16: it is a function of no row). A list is whole if it
began before anything was charged, and its token is the last one that the log knows; or if that is the one before its
own, as a kill leaves it, whose token is then logged at the next start, before a budget is reserved and before another
is made. Where the list before is put back by then, the one that is lost is not seen to be; so whose patients it alone
held have no budget: a case knows its list's token from the transaction on that keeps its records, and no approval of it
counts unless the log has it, and any list before is seen to be one from then on; or unless no list is whole, neither
then nor later, whatever is put back (`require_listed`). After a restore in which the log itself lost records no list is
whole (`ledger_log.LogState.lists`). (3) The database is kept from others for no longer the more patients there are; and
digests are held, compared, sorted, written and freed in thousands of portions, so that no single call of the
interpreter, for whose length other threads of this process get no turn, is on more than one portion's patients (I16).
Assumes `flock` on the home's disk, and of the log what `ledger_log` says of its anchor.

Not claimed: (2) where log, anchors and list were put back together; of a list that an older version left, what it
lacked before a token was first in it; and of a case that such a version examined, that the log knows its list. (3) of
what is done with the table before, its rows' names included (`ticks`); and a portion grows too, if slowly: it holds
some 500 of two million patients.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.budget import ledger_log
from datasites.hospital.config import Home
from datasites.hospital.models import Case, LedgerEntry
from datasites.hospital.site import Site
from datasites.study.canonical import canonical_json
from datasites.study.errors import InputError
from datasites.study.files import held, put_in_place, write_beside

if TYPE_CHECKING:
    from datasites.hospital.data.reading_messages import Cells

#: Bytes of a digest that are kept: a chance meeting among a billion patients is below 2^-60.
KEPT = 16
#: Digests of patients in portions by their first bits, each of which holds its own once, sorted and joined.
Digests = tuple[bytes, ...]
_BITS = 12
#: How a list begins: whether all who were ever kept are on it; then its token, and the one of the list before.
_WHOLE, _PART = b"everybody, v1   ", b"some of them, v1"
_HEADING = len(_WHOLE) + 2 * ledger_log.TOKEN


class SamePatients(InputError):
    """Patients of one population stand in another one too."""


def row_identities(home: Home, table: Cells) -> list[str]:
    """Return a name for each row of a table, in its order.

    Cells are taken as they stand in the file, and not as a reader would guess from the rows around them: a column of
    whole numbers becomes one of fractions when a value is missing somewhere, and would rename everybody.
    """
    key, seen = Commitments(home), Counter[bytes]()
    names = []
    columns, in_order = _by_name(table)
    for cells in in_order:
        content = canonical_json([[name, cell] for name, cell in zip(columns, cells, strict=True)])
        names.append(
            key.commit("row of a table", len(content).to_bytes(8, "big") + content + str(seen[content]).encode())
        )
        seen[content] += 1
    return names


def contents(table: Cells) -> Iterator[str]:
    """Yield the content of each row of a table, with the names of its columns in their order.

    Cheap, since a table may have hundreds of columns and its reading is allowed a time by what is declared (`ticks`).
    """
    columns, in_order = _by_name(table)
    names = "".join(f"{len(name)}:{name}" for name in columns)
    for cells in in_order:
        yield f"{names}{','.join(map(str, map(len, cells)))}:{''.join(cells)}"


def _by_name(table: Cells) -> tuple[list[str], Iterator[list[str]]]:
    """Return the names of a table's columns, sorted, and each row's cells in that order."""
    places = sorted(range(len(table.names)), key=table.names.__getitem__)
    return [table.names[place] for place in places], ([row[place] for place in places] for row in table)


def require_others(
    home: Home, population: str, identities: Iterable[str], accepted: frozenset[str], rows: Iterable[str] = ()
) -> Digests:
    """Return digests of these patients; raises `SamePatients` where some are in a population that isn't `accepted`.

    accepted: populations of which two people said that they are other patients. A population whose patients are not
    all known (their list is an older one or was lost, or an older version kept none) counts as the same until then.
    rows: `contents` of their table: one table is the same people whatever column is said to name them.
    """
    named, whole = _digests(home, "patient", identities), _digests(home, "row of a population", rows)
    for other in sorted((_charged() | listed(home)) - accepted - {population}):
        remedy = (
            f"set `population` of the dataset in datasite.toml to {other!r}; if they are other people, two reviewers "
            f"say so: `datasites budget other-patients {population} {other}`"
        )
        if not _is_whole(home, other):
            raise SamePatients(
                f"population {population}: population {other} has a budget, and its patients are not all known "
                f"here: the list of them is an older one, or was lost; {remedy}"
            )
        known = _known(home, other)
        if both := _meeting(named, known):
            raise SamePatients(
                f"population {population}: {both} of its patients are in population {other} too, under the same "
                f"pseudonyms, and would have two budgets; {remedy}"
            )
        if both := _meeting(whole, known):
            raise SamePatients(
                f"population {population}: {both} rows of its table are in population {other} too, where another "
                f"column or none names patients, and these would have two budgets; {remedy}"
            )
    return tuple(_in_order(ours + theirs) for ours, theirs in zip(named, whole, strict=True))


def _meeting(ours: Digests, theirs: Digests) -> int:
    return sum(len(_each(one) & _each(other)) for one, other in zip(ours, theirs, strict=True))


def in_part(home: Home) -> list[str]:
    """Return the populations whose patients are not all known: any other one counts as the same people."""
    return sorted(name for name in _charged() | listed(home) if not _is_whole(home, name))


@contextmanager
def remembering(
    site: Site, population: str, digests: Digests, *, others_missing: bool = False
) -> Iterator[Callable[[], str]]:
    """Give what keeps these patients among those of the population, for good, when it is called; it returns the token
    of their list, for `require_listed`.

    The call is the same little work for any number of patients, to be made in a transaction: all that takes longer the
    more there are is done before. The log learns of it at the end: leave when that may show. Others who keep patients
    of this population wait until this is over. others_missing: neither this list nor any after it is whole.
    """
    home = site.home
    path = home.identities / f"{population}.bin"
    with held(path.with_suffix(".lock")):
        _log(site, population)
        heading, known = _next(home, population, others_missing), _known(home, population)
        everybody = (_in_order(ours + theirs) for ours, theirs in zip(digests, known, strict=True))
        beside = write_beside(path, chain([heading.written()], everybody))

        def remember() -> str:
            put_in_place(path)
            return heading.token or ""

        try:
            yield remember
        finally:
            beside.unlink(missing_ok=True)
        _log(site, population)


def in_portions(digests: Iterable[bytes]) -> Digests:
    """Put digests into portions, whatever order they come in."""
    gathered = [bytearray() for _ in range(1 << _BITS)]
    for digest in digests:
        gathered[int.from_bytes(digest[:2]) >> (16 - _BITS)] += digest
    return tuple(_in_order(portion) for portion in gathered)


def _in_order(portion: bytes | bytearray) -> bytes:
    """Return each of a portion once, sorted: so they show nothing of the order in which patients came."""
    return b"".join(sorted(_each(portion)))


def _each(portion: bytes | bytearray) -> set[bytes]:
    return {bytes(portion[start : start + KEPT]) for start in range(0, len(portion), KEPT)}


def _digests(home: Home, what: str, texts: Iterable[str]) -> Digests:
    key = Commitments(home)
    # Rows of one patient that follow one another are one; a set of all patients would grow and be freed in one call.
    return in_portions(bytes.fromhex(key.commit(what, text.encode()))[:KEPT] for text, _ in groupby(texts))


def _known(home: Home, population: str) -> Digests:
    return in_portions(_stored(home.identities / f"{population}.bin"))


def _stored(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        if _Heading.read(file.read(_HEADING)).token is None:
            file.seek(0)
        while block := file.read(KEPT << _BITS):
            yield from (block[start : start + KEPT] for start in range(0, len(block), KEPT))


@dataclass(frozen=True)
class _Heading:
    """What a list says of itself. token: None in one of an older version, which begins with its patients."""

    whole: bool
    token: str | None
    before: str

    @classmethod
    def read(cls, start: bytes) -> _Heading:
        mark, tokens = start[: len(_WHOLE)], start[len(_WHOLE) :].hex()
        if mark not in (_WHOLE, _PART):
            return cls(True, None, ledger_log.NO_TOKEN)
        return cls(mark == _WHOLE, tokens[: 2 * ledger_log.TOKEN], tokens[2 * ledger_log.TOKEN :])

    def written(self) -> bytes:
        assert self.token is not None
        return (_WHOLE if self.whole else _PART) + bytes.fromhex(self.token + self.before)


def _heading(home: Home, population: str) -> _Heading | None:
    try:
        with (home.identities / f"{population}.bin").open("rb") as file:
            return _Heading.read(file.read(_HEADING))
    except FileNotFoundError:
        return None


def _is_whole(home: Home, population: str) -> bool:
    """Say whether all who were ever kept for the population are on its list."""
    heading = _heading(home, population)
    if heading is None:
        return False
    return heading.whole and ledger_log.tell(home).token(population) in (heading.token, heading.before)


def _next(home: Home, population: str, others_missing: bool) -> _Heading:
    """Return the heading of the next list; a first one is whole if nobody can be missing on it."""
    whole = not others_missing and (_is_whole(home, population) or population not in _charged() | listed(home))
    return _Heading(whole, secrets.token_hex(ledger_log.TOKEN), ledger_log.tell(home).token(population))


def log_lists(site: Site, *populations: str) -> None:
    """Let log and anchor know what a kill has left unsaid of these lists, or of all."""
    folder = site.home.identities
    for population in populations or sorted(path.stem for path in folder.glob("*.bin")):
        with held(folder / f"{population}.lock"):
            _log(site, population)


def require_listed(site: Site, row: Case, population: str) -> None:
    """Raise `InputError` where a list of all patients may be there, now or later, that lacks those of a case.

    None may once the log knows, or knew, the list that they are on. Nor where the list that is there isn't whole, which
    is made so for good: a list that lacks others is logged as the last, since what is lost now may be put back.
    """
    log_lists(site, population)
    if not row.listed_as or site.audit.holds(ledger_log.PATIENTS_KEPT, token=row.listed_as):
        return
    if _is_whole(site.home, population):
        raise InputError(
            f"case {row.pk}: the audit log does not know the list that its patients were put on, and another one is in "
            f"its place: the examination was interrupted, and a file put back; `datasites review recheck {row.pk}`"
        )
    with remembering(site, population, in_portions(()), others_missing=True) as remember:
        remember()


def _log(site: Site, population: str) -> None:
    """Let log and anchor know the list that is there, if it is the one after the last that they know."""
    heading, last = _heading(site.home, population), ledger_log.tell(site.home).token(population)
    if heading is not None and heading.token not in (None, last) and heading.before == last:
        site.audit.append(ledger_log.PATIENTS_KEPT, population=population, token=heading.token)
        ledger_log.write_anchor(site.home)


def _charged() -> set[str]:
    return set(LedgerEntry.objects.values_list("population", flat=True).distinct())


def listed(home: Home) -> set[str]:
    """Return the populations that have a list of patients, or had one as the log says."""
    return {path.stem for path in home.identities.glob("*.bin")} | ledger_log.tell(home).lists.keys()
