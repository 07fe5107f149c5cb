"""Who a row is about: identities of patients, and whether the same ones stand in two populations.

With a patient column a patient is the pseudonym that stands in it. Without one each row is a patient, named by a keyed
digest of its content (all columns of the source, as they stand there) and its number among equal rows: whatever order
rows stand in, and whichever of them is taken away, all others keep their names. A row that is corrected gets another
name, and so maybe another side; such a dataset charges both sides for everything.

Budgets hold per population, so a patient who stands in two of them would have two. Digests of all patients whose
records were prepared are kept per population under one key of the hospital, and compared with those of the others. What
this can't see: a patient under another pseudonym, or in a table that was written anew.

**Claim.** Nobody who was kept is forgotten, whichever threads and processes keep patients of one population at once.
The database is kept from others for no longer the more patients there are; and digests are held, compared, sorted,
written and freed in thousands of portions, so that no single call of the interpreter, for whose length other threads of
this process get no turn, is on more than one portion's patients (I16). Assumes `flock` on the home's disk.

Not claimed: that of what is done with the table before, its rows' names included (`ticks`); and a portion grows too, if slowly: it
holds some 500 of two million patients.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path

import pandas as pd

from datasites.hospital.commitments import Commitments
from datasites.hospital.config import Home
from datasites.hospital.models import LedgerEntry
from datasites.study.canonical import canonical_json
from datasites.study.durable import put_in_place, write_beside
from datasites.study.errors import InputError

#: Bytes of a digest that are kept: a chance meeting among a billion patients is below 2^-60.
KEPT = 16
#: Digests of patients in portions by their first bits, each of which holds its own once, sorted and joined.
Digests = tuple[bytes, ...]
_BITS = 12


class SamePatients(InputError):
    """Patients of one population stand in another one too."""


def row_identities(home: Home, table: pd.DataFrame) -> list[str]:
    """A name for each row of a table as `cells.read_table` gives it, in its order.

    Cells are taken as they stand in the file, and not as a reader would guess from the rows around them: a column of
    whole numbers becomes one of fractions when a value is missing somewhere, and would rename everybody.
    """
    key, seen = Commitments(home), Counter[bytes]()
    names = []
    columns = sorted(table.columns)
    for cells in table[columns].itertuples(index=False, name=None):
        content = canonical_json([[name, cell] for name, cell in zip(columns, cells, strict=True)])
        names.append(
            key.commit("row of a table", len(content).to_bytes(8, "big") + content + str(seen[content]).encode())
        )
        seen[content] += 1
    return names


def require_others(home: Home, population: str, identities: Iterable[str], accepted: frozenset[str]) -> Digests:
    """Digests of these patients, or `SamePatients` where some of them stand in a population that isn't `accepted`.

    accepted: populations of which two people said that they are other patients. A population whose patients were
    charged and are not known (an older version did not keep their digests) counts as the same until then.
    """
    digests = _digests(home, identities)
    charged = set(LedgerEntry.objects.values_list("population", flat=True).distinct())
    known = {path.stem for path in home.identities.glob("*.bin")}
    for other in sorted((charged | known) - accepted - {population}):
        remedy = (
            f"set `population` of the dataset in datasite.toml to {other!r}; if they are other people, two reviewers "
            f"say so: `datasites budget other-patients {population} {other}`"
        )
        if other not in known:
            raise SamePatients(
                f"population {population}: population {other} has a budget, and who its patients are is not known "
                f"here; {remedy}"
            )
        both = sum(len(_each(ours) & _each(theirs)) for ours, theirs in zip(digests, _known(home, other), strict=True))
        if both:
            raise SamePatients(
                f"population {population}: {both} of its patients stand in population {other} too, under the same "
                f"pseudonyms, and would have two budgets; {remedy}"
            )
    return digests


@contextmanager
def remembering(home: Home, population: str, digests: Digests) -> Iterator[Callable[[], None]]:
    """Give what keeps these patients among those of the population, for good, when it is called.

    The call is the same little work for any number of patients, to be made in a transaction: all that takes longer the
    more there are is done before. Others who keep patients of this population wait until this is over.
    """
    path = home.identities / f"{population}.bin"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _known(home, population)
        beside = write_beside(path, (_in_order(ours + theirs) for ours, theirs in zip(digests, known, strict=True)))
        try:
            yield partial(put_in_place, path)
        finally:
            beside.unlink(missing_ok=True)
    finally:
        os.close(lock)


def in_portions(digests: Iterable[bytes]) -> Digests:
    """Put digests into portions, whatever order they come in."""
    gathered = [bytearray() for _ in range(1 << _BITS)]
    for digest in digests:
        gathered[int.from_bytes(digest[:2]) >> (16 - _BITS)] += digest
    return tuple(_in_order(portion) for portion in gathered)


def _in_order(portion: bytes | bytearray) -> bytes:
    """Each of a portion once, sorted: so they tell nothing of the order in which patients came."""
    return b"".join(sorted(_each(portion)))


def _each(portion: bytes | bytearray) -> set[bytes]:
    return {bytes(portion[start : start + KEPT]) for start in range(0, len(portion), KEPT)}


def _digests(home: Home, identities: Iterable[str]) -> Digests:
    key = Commitments(home)
    # Rows of one patient that follow one another are one; a set of all patients would grow and be freed in one call.
    return in_portions(
        bytes.fromhex(key.commit("patient", identity.encode()))[:KEPT] for identity, _ in groupby(identities)
    )


def _known(home: Home, population: str) -> Digests:
    return in_portions(_stored(home.identities / f"{population}.bin"))


def _stored(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        while block := file.read(KEPT << _BITS):
            yield from (block[start : start + KEPT] for start in range(0, len(block), KEPT))
