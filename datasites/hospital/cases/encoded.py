"""A case's encoded records: staged beside those of an earlier examination, kept, and read for a worker."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasites.hospital.budget.population import other_patients, split_of
from datasites.hospital.cases.freeze import FrozenCopyChanged
from datasites.hospital.cases.staging import new_staging
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data.answers import require_answered
from datasites.hospital.data.mapping import FeatureReadiness, read_mapping
from datasites.hospital.data.patients import Digests, contents, remembering, require_others, row_identities
from datasites.hospital.data.records import Prepared, records_digest
from datasites.hospital.data.sources import SOURCE_FILE, Files, Source
from datasites.hospital.data.withdrawal import stays
from datasites.hospital.site import Site
from datasites.study.files import move_durably, on_disk, write_durably
from datasites.study.package import StudyPackage

if TYPE_CHECKING:
    import numpy as np

    from datasites.enclave.partition import Partition
    from datasites.enclave.protocol import PartitionName
    from datasites.hospital.data.reading import TableReader
from datasites.hospital.cases.case import OpenCase, data_version, records_folder

PREPARED_FILE = "records.npz"


@dataclass(frozen=True)
class StagedRecords:
    """A study's encoded records, not yet in the place from which they are trained on.

    **Claim.** Ended anywhere while these are kept, no approval counts for other records than those that are there. What
    says which records they are (`prepared.json`) is on the disk before they are, and they before the case's row: until
    all of it is, what would run is not what the case was examined as, and `code` denies it until it is examined again.
    Assumes a file system and a database that keep what they have acknowledged.
    """

    prepared: Prepared
    reports: tuple[FeatureReadiness, ...]
    folder: Path
    population: str
    identity: str
    patients: Digests

    @contextmanager
    def keeping(self, site: Site, study_hash: str) -> Iterator[Callable[[], str]]:
        """Give what puts them into their place, and their patients among those of the population (`remembering`)."""
        target = records_folder(site.home, study_hash)
        with remembering(site, self.population, self.patients) as remember:

            def keep() -> str:
                token = remember()
                target.mkdir(parents=True, exist_ok=True, mode=0o700)
                for name in ("prepared.json", SOURCE_FILE, PREPARED_FILE):
                    move_durably(self.folder / name, target / name)
                return token

            yield keep

    def drop(self) -> None:
        """Remove what was not kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def stage_records(home: Home, reader: TableReader, package: StudyPackage, dataset: DatasetSettings) -> StagedRecords:
    """Encode the hospital's table for this study into a folder of its own in the private folder, mode 0700.

    Raises `SchemaError` or `InputError` when the table does not fit, when it has findings that nobody has answered, or
    when its patients have another budget already.
    """
    import numpy as np

    files = Files.now(home, package.digest(), dataset)
    mapping, model = read_mapping(home.root / dataset.mapping), package.data_model
    read = reader.records(dataset, mapping, model)
    whose = read.whose
    if mapping.patient is None:
        names = row_identities(home, read.cells)
        whose = [names[int(row)] for row in whose]
    arrays = {"x": read.x, "y": read.y, "patient": np.array(whose, dtype=np.str_)}
    prepared = Prepared.of(model, arrays, "row" if mapping.patient is None else "patient")
    require_answered(home, dataset.name, read.seen.findings, model)
    accepted = other_patients(dataset.population)
    patients = require_others(home, dataset.population, whose, accepted, contents(read.cells))
    folder = new_staging(home)
    try:
        # Else the disk may be told to write them only at the commit of the transaction that keeps them.
        with on_disk(folder / PREPARED_FILE) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        source = Source.of(home, package.digest(), files, read.cells)
        write_durably(folder, {"prepared.json": prepared.canonical(), SOURCE_FILE: source.canonical()})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return StagedRecords(prepared, read.seen.features, folder, dataset.population, mapping.patient or "", patients)


def partitions(home: Home, case: OpenCase) -> dict[PartitionName, Partition]:
    """Return the case's records as training and held-out rows, less patients who have withdrawn.

    Raises `FrozenCopyChanged` when the records are not those approved.
    """
    import numpy as np  # with the trainer's part, for whoever hands rows to a worker; most only open the case

    from datasites.enclave.partition import Partition
    from datasites.privacy import sampling

    folder = records_folder(home, case.row.study_hash)
    with np.load(folder / PREPARED_FILE, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in ("x", "y", "patient")}
    if data_version(home, case.row.study_hash, records_digest(case.package.data_model, arrays)) != (
        case.approval_terms.data_version
    ):
        raise FrozenCopyChanged(
            f"case {case.row.pk}: the prepared records are not the version that was approved; withdraw the study or "
            "prepare and review it again"
        )
    split = split_of(case.dataset)
    here = stays(home, case.dataset.name, arrays["patient"])
    arrays = {name: array[here] for name, array in arrays.items()}
    held_out = sampling.held_out(arrays["patient"], bytes(split.split_key), split.fraction)
    numbers = np.unique(arrays["patient"], return_inverse=True)[1].astype(np.int64)

    def rows(chosen: np.ndarray) -> Partition:
        return Partition(x=arrays["x"][chosen], y=arrays["y"][chosen], patients=numbers[chosen])

    return {"training": rows(~held_out), "held_out": rows(held_out)}
