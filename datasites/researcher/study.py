"""A study as its researcher holds it: the folder, its terms, and the checks that every hospital will run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datasites.aggregator.strategies import strategy_of
from datasites.enclave.findings import CodeFinding
from datasites.enclave.partition import Partition
from datasites.enclave.protocol import Description, Rehearsed
from datasites.enclave.sandbox import Sandbox
from datasites.enclave.verifier import check_source
from datasites.enclave.worker_client import Worker
from datasites.privacy.study_plan import StudyPlan, plan_of
from datasites.study.manifest import StudyTerms
from datasites.study.package import StudyPackage
from datasites.study.rounds import gradient_ring

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


class Study:
    """A study folder (`study.toml`, `features.toml`, `model.py`), read once."""

    def __init__(self, folder: Path, package: StudyPackage) -> None:
        self.folder = folder
        self.package = package

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """Read a folder; raises `InputError` that names file, key and rule."""
        package = StudyPackage.read(Path(folder))
        package.require_plain()
        strategy_of(package.study.strategy)
        return cls(Path(folder), package)

    @property
    def terms(self) -> StudyTerms:
        """Return what `study.toml` says."""
        return self.package.study

    @property
    def hash(self) -> str:
        """Return the study hash, 64 hex digits."""
        return self.package.digest()

    @property
    def job_name(self) -> str:
        """Return the name of the syft job that submits this very study."""
        return f"{self.terms.name}-{self.hash[:12]}"

    def check(self) -> tuple[CodeFinding, ...]:
        """Return what a hospital's static verifier finds in `model.py`; empty when clean. Executes nothing."""
        return check_source(self.package.source)

    def worker(
        self,
        sandbox: Sandbox | None = None,
        mock: pd.DataFrame | None = None,
        began: Callable[[Worker], None] | None = None,
    ) -> Worker:
        """Start a sandboxed worker, with `mock` rows if given; close it after use. began: see `Worker.start`.

        mock: shape (rows, columns), a column for each feature and the label, as `DataModel.encode_mock` reads it.
        Raises `WorkerError` or `SandboxUnavailable`.
        """
        return Worker.start(
            sandbox or Sandbox(),
            self.package.source,
            n_features=len(self.package.data_model.columns),
            config=self.terms.model,
            data_model=self.package.data_model,
            data={} if mock is None else {"mock": Partition.of_mock(self.package.data_model, mock)},
            began=began,
        )

    def plan(self) -> StudyPlan:
        """Return what the study costs and what its threshold does; print it, or look at `table()`.

        As of a hospital without stricter limits. Raises `PlanError` where no noise fits, or in distributed mode where
        the study's doesn't; it names the figure that does.
        """
        return plan_of(self.terms)

    def rehearse(self, mock: pd.DataFrame, sandbox: Sandbox | None = None) -> Rehearsed:
        """Train a round on mock rows in the sandbox, with the trainer and the probes that hospitals use.

        mock: shape (rows, columns), a column for each feature and the label, as `DataModel.encode_mock` reads it.
        """
        with self.worker(sandbox, mock) as worker:
            plan = self.plan().training
            return worker.rehearse(
                plan=plan,
                training=self.terms.training,
                divisor=plan.sampling_rate * len(mock),
                ring=gradient_ring(self.terms, worker.description.count),
            )

    def initial_model(
        self, sandbox: Sandbox | None = None, began: Callable[[Worker], None] | None = None
    ) -> tuple[npt.NDArray[np.float32], Description]:
        """Return what `build_model` starts from, float32 (d,), and its tensors in flattening order."""
        with self.worker(sandbox, began=began) as worker:
            return worker.initial_parameters(), worker.description
