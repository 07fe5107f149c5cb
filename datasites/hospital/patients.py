"""Who a row is about: identities of patients, and whether the same ones stand in two populations.

With a patient column a patient is the pseudonym that stands in it. Without one each row is a patient, named by a keyed
digest of its content (all columns of the source, as they stand there) and its number among equal rows: whatever order
rows stand in, and whichever of them is taken away, all others keep their names. A row that is corrected gets another
name, and so maybe another side; such a dataset charges both sides for everything.

Budgets hold per population, so a patient who stands in two of them would have two. Digests of all patients whose
records were prepared are kept per population under one key of the hospital, and compared with those of the others. What
this can't see: a patient under another pseudonym, or in a table that was written anew.

**Claim.** Nobody who was kept is forgotten, whichever threads and processes keep patients of one population at once;
and no lock that others wait for, of the database or of the interpreter, is held for a time that grows with the number
of patients (I16). Assumes `flock` on the home's disk.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain

import pandas as pd

from datasites.hospital.commitments import Commitments
from datasites.hospital.config import Home
from datasites.hospital.models import LedgerEntry
from datasites.study.canonical import canonical_json
from datasites.study.durable import put_in_place, write_beside
from datasites.study.errors import InputError

#: Bytes of a digest that are kept: a chance meeting among a billion patients is below 2^-60.
KEPT = 16


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


def require_others(
    home: Home, population: str, identities: Iterable[str], accepted: frozenset[str]
) -> frozenset[bytes]:
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
        theirs = _known(home, other)
        both = sum(digest in theirs for digest in digests)
        if both:
            raise SamePatients(
                f"population {population}: {both} of its patients stand in population {other} too, under the same "
                f"pseudonyms, and would have two budgets; {remedy}"
            )
    return digests


@contextmanager
def remembering(home: Home, population: str, digests: frozenset[bytes]) -> Iterator[Callable[[], None]]:
    """Give what keeps these patients among those of the population, for good, when it is called.

    The call is the same little work for any number of patients, to be made in a transaction: all that takes longer the
    more there are is done before. Others who keep patients of this population wait until this is over.
    """
    path = home.identities / f"{population}.bin"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        beside = write_beside(path, _in_order(chain(_known(home, population), digests)))
        try:
            yield partial(put_in_place, path)
        finally:
            beside.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _in_order(digests: Iterable[bytes]) -> bytes:
    """Each once, sorted: in portions, since one sort of all would keep the interpreter from every other thread."""
    portions: list[set[bytes]] = [set() for _ in range(1 << 12)]
    for digest in digests:
        portions[int.from_bytes(digest[:2]) >> 4].add(digest)
    return b"".join(b"".join(sorted(portion)) for portion in portions)


def _digests(home: Home, identities: Iterable[str]) -> frozenset[bytes]:
    key = Commitments(home)
    different = {identity for identity in identities}  # noqa: C416 (step by step: one call would hold the interpreter)
    return frozenset(bytes.fromhex(key.commit("patient", identity.encode()))[:KEPT] for identity in different)


def _known(home: Home, population: str) -> frozenset[bytes]:
    try:
        stored = (home.identities / f"{population}.bin").read_bytes()
    except FileNotFoundError:
        return frozenset()
    return frozenset(stored[start : start + KEPT] for start in range(0, len(stored), KEPT))
