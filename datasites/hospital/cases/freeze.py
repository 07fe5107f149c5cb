"""Takes a submitted job, trusts nothing in it, and freezes what reviewers will see and what alone will run (I1).

Nothing is executed here. The frozen copy lies in the datasite's private folder under the study hash; `open_frozen`
reads it again and refuses it if a byte has changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError, InputError
from datasites.study.files import move_durably, write_durably
from datasites.study.manifest import Sha256
from datasites.study.package import STUDY_FILES, StudyPackage

#: Packages whose versions an approval binds: they decide what training does and what it costs.
DEPENDENCIES = ("datasites", "torch", "opacus", "dp-accounting", "numpy", "randomgen")


class FrozenCopyChanged(DatasitesError):
    """The frozen copy is not what was approved; the study must not run. controls: what others may be told."""

    controls = ("code-frozen",)


class ApprovalTerms(Agreed):
    """Everything that an approval binds; its digest is the approval hash.

    `plan` and `evaluation_plan` are the hospital's own, calibrated from the study's terms within its limits (I4).
    `data_version` is a keyed commitment to the records, since the hash goes to the researcher (I16). `ticks` after a
    round's letter its release leaves (`ticks`): time for as many records as are declared. `parameters` is how many
    numbers the model has, as it was built here.
    `identity` is the column that identifies patients ("" where each row is one). `both_sides`: every event is charged
    to training and to held-out patients, since who tells them apart otherwise may move somebody from side to side.
    """

    study_hash: Sha256
    dataset: str
    population: str
    identity: str
    both_sides: bool
    data_version: Sha256
    plan: dict[str, Any]
    evaluation_plan: dict[str, Any]
    declared_patients: int
    declared_records: int
    verifier_ruleset: str
    dependencies: dict[str, str]
    ticks: Annotated[int, Field(ge=1)]
    parameters: Annotated[int, Field(ge=0)]


def dependencies() -> dict[str, str]:
    """Return the installed versions of what an approval binds."""
    return {name: version(name) for name in DEPENDENCIES}


def freeze(files: Mapping[str, bytes], frozen: Path) -> StudyPackage:
    """Check that `files` are a study, and store a read-only copy at `frozen`/<study hash>.

    `files` maps relative paths inside the job's code folder to bytes. Raises `InputError` for anything that is not a
    study: unexpected names, folders, binary or oversized files, malformed terms. Storing the same study twice is one
    copy. The copy appears whole or not at all.
    """
    package = StudyPackage(files)
    package.require_plain()
    target = frozen / package.digest()
    if target.exists():
        return open_frozen(frozen, package.digest())
    frozen.mkdir(parents=True, exist_ok=True, mode=0o700)
    staging = Path(tempfile.mkdtemp(dir=frozen, prefix=".staging-"))
    try:
        write_durably(staging, package.files, mode=0o400, new=True)
        os.chmod(staging, 0o500)
        move_durably(staging, target)
    except BaseException:
        os.chmod(staging, 0o700)  # its owner takes nothing out of it else
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return package


def open_frozen(frozen: Path, study_hash: str) -> StudyPackage:
    """Read the frozen copy; raises `FrozenCopyChanged` when it is missing, was added to, or a byte differs."""
    folder = frozen / study_hash
    remedy = (
        "the study stays stopped; find out who changed the datasite's private folder, then ask for a new submission"
    )
    try:
        package = StudyPackage.read(folder)
        names = sorted(path.name for path in folder.iterdir())
    except (InputError, OSError) as error:
        raise FrozenCopyChanged(f"frozen copy {study_hash[:12]}: {error}; {remedy}") from error
    if names != sorted(STUDY_FILES) or package.digest() != study_hash:
        raise FrozenCopyChanged(f"frozen copy {study_hash[:12]}: its content is not what was approved; {remedy}")
    return package
