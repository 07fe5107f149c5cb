"""Checks whether a dataset's table and mapping are still those that the frozen records of a case were made from.

A study trains on its frozen records, whatever happens to the table. People are told when the two differ: by `doctor`
and `dataset check`, on the case's page, and by a record of the audit log.

**Claim (I16).** Nothing that leaves depends on rows by this. What is kept of a source are keyed digests, its number of
rows and the moments at which its files were written, in the case's private folder. What differs is said in words for
the hospital's eyes, to people who ask, and no study waits for it. The record holds no count, and follows from whether
the files were written since, which whoever exports them decides, and not from what is in them: so a table that was
written anew is in the log though every row may be as it was, and the words say whether it is. A case's page hashes a
file that was written since, for which no other thread waits, and reads no row.
Assumptions: those of `commitments`; exports don't give a file the time at which another one was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datasites.hospital.audit.commitments import Commitments
from datasites.hospital.audit.log import Value
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.patients import contents
from datasites.hospital.models import Case
from datasites.hospital.site import Site
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError, InputError
from datasites.study.manifest import Sha256

if TYPE_CHECKING:
    from datasites.hospital.data.reading_messages import Cells

SOURCE_FILE = "source.json"
#: Table or mapping of an approved case were written after its records were made from them.
WRITTEN = "source_written"
_APPROVED = (*Case.ACTIVE, Case.State.STOPPED)


class Source(Agreed):
    """What a case's records were made from. file, mapping: their bytes; cells: the rows, in whatever order.

    written: when table and mapping were, in nanoseconds; 0 for a file that isn't there, or on an unavailable disk.
    """

    format: Literal[1] = 1
    file: Sha256
    cells: Sha256
    mapping: Sha256
    rows: int
    written: tuple[int, int]

    @classmethod
    def of(cls, home: Home, study_hash: str, files: Files, table: Cells) -> Source:
        """Return the source of a table as it was read after `files`."""
        cells = _cells_of(home, study_hash, table)
        return cls(file=files.table, cells=cells, mapping=files.mapping, rows=len(table), written=files.written)


@dataclass(frozen=True)
class Files:
    """Table and mapping as they are before they are read, so that whatever is written from then on shows."""

    table: str
    mapping: str
    written: tuple[int, int]

    @classmethod
    def now(cls, home: Home, study_hash: str, dataset: DatasetSettings) -> Files:
        """Return the files' present state, nothing for a file that can't be read: whoever reads it next says why."""
        written, digests = written_at(home, dataset), dict.fromkeys(("table", "mapping"), "0" * 64)
        for name in digests:
            with suppress(OSError):
                digests[name] = _bytes_of(home, study_hash, home.root / getattr(dataset, name))
        return cls(**digests, written=written)


def written_at(home: Home, dataset: DatasetSettings) -> tuple[int, int]:
    """Say when table and mapping were written."""
    return _written(home.root / dataset.table), _written(home.root / dataset.mapping)


def source_of(home: Home, row: Case) -> Source | None:
    """Return what a case's records were made from; None where an older version examined it."""
    try:
        return Source.parse((home.prepared / row.study_hash / SOURCE_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def log_written(site: Site, case_rows: Iterable[Case]) -> None:
    """Log of each approved case, once, that its table or mapping was written since."""
    for row in case_rows:
        source = source_of(site.home, row)
        if row.state not in _APPROVED or source is None:
            continue
        with suppress(InputError):  # the dataset isn't in datasite.toml any more, which stops the study
            if written_at(site.home, site.home.dataset(row.approval_terms["dataset"])) != source.written:
                what: dict[str, Value] = {"case": row.pk, "study": row.study_hash, "hash": row.approval_hash}
                site.audit.append_once(WRITTEN, **what, dataset=row.approval_terms["dataset"])


def in_words(home: Home, row: Case, *, rows: bool) -> str:
    """Say how a case's source differs from what its records were made from, or "".

    rows: whether to read the table and say what differs, or only that its file does.
    """
    source = source_of(home, row)
    if source is None or not row.approval_terms or row.state not in (*_APPROVED, Case.State.REVIEW):
        return ""
    try:
        dataset = home.dataset(row.approval_terms["dataset"])
        if not rows and written_at(home, dataset) == source.written:
            return ""
        found = list(_differences(home, row.study_hash, dataset, source, rows=rows))
    except (DatasitesError, OSError) as error:
        found = [f"it can't be compared ({error})"]
    if not found:
        return ""
    if row.state in _APPROVED:
        what = "the study goes on with its frozen records: pause it and find out which of the two is right"
    else:
        what = f"its frozen records are unchanged: `datasites review recheck {row.pk}` takes the present ones"
    return f"source of case {row.pk}: {'; '.join(found)}; {what}"


def _differences(home: Home, study_hash: str, dataset: DatasetSettings, source: Source, *, rows: bool) -> Iterator[str]:
    if _bytes_of(home, study_hash, home.root / dataset.mapping) != source.mapping:
        yield f"{dataset.mapping} is not the one by which the table was read"
    if _bytes_of(home, study_hash, home.root / dataset.table) == source.file:
        return
    if not rows:
        yield f"{dataset.table} is not the file that was read; `datasites doctor` says what differs"
        return
    from datasites.hospital.data.reading import TableReader  # for whoever reads rows; most look at the file alone

    with TableReader(home) as reader:
        table = reader.cells(dataset)
    if _cells_of(home, study_hash, table) == source.cells:
        return  # written anew, or in another order
    fewer = source.rows - len(table)
    how = f"{abs(fewer)} {'fewer' if fewer > 0 else 'more'}" if fewer else "as many, but not the same"
    yield f"{dataset.table} is not the table that was read: {len(table)} rows now, {how}"


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _bytes_of(home: Home, study_hash: str, path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return Commitments(home).commit(f"source file of study {study_hash}", digest)


def _cells_of(home: Home, study_hash: str, table: Cells) -> str:
    digest = hashlib.sha256()
    for row in sorted(hashlib.sha256(content.encode()).digest() for content in contents(table)):
        digest.update(row)
    return Commitments(home).commit(f"source rows of study {study_hash}", digest.digest())
