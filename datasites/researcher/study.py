"""A study as its researcher holds it: the folder, its terms, and the checks that every hospital will run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from datasites.enclave.findings import Finding
from datasites.enclave.protocol import Description, Rehearsed
from datasites.enclave.sandbox import Sandbox
from datasites.enclave.verifier import verify
from datasites.enclave.worker import Partition, Worker
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan, plans_for
from datasites.researcher.strategies import strategy_of
from datasites.secagg.threshold import honest_contributors
from datasites.study.canonical import sha256_hex
from datasites.study.manifest import Study as Terms
from datasites.study.package import StudyPackage
from datasites.study.rounds import RingTerms, ring_terms


class Study:
    """A study folder (`study.toml`, `features.toml`, `model.py`), read once."""

    def __init__(self, folder: Path, package: StudyPackage) -> None:
        self.folder = folder
        self.package = package

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """Read a folder; raises `InputError` that names file, key and rule."""
        package = StudyPackage.read(Path(folder))
        strategy_of(package.study.strategy)
        return cls(Path(folder), package)

    @property
    def terms(self) -> Terms:
        """What `study.toml` says."""
        return self.package.study

    @property
    def hash(self) -> str:
        """The study hash, 64 hex digits."""
        return self.package.digest()

    @property
    def job_name(self) -> str:
        """Name of the syft job that submits this very study."""
        return f"{self.terms.name}-{self.hash[:12]}"

    def check(self) -> tuple[Finding, ...]:
        """What a hospital's static verifier finds in `model.py`; empty when clean. Executes nothing."""
        return verify(self.package.source)

    def worker(self, sandbox: Sandbox | None = None, mock: pd.DataFrame | None = None) -> Worker:
        """A sandboxed worker on this study, with `mock` rows where given; close it after use.

        Raises `WorkerError` or `SandboxUnavailable`.
        """
        return Worker.start(
            sandbox or Sandbox(),
            self.folder,
            {name: sha256_hex(content) for name, content in self.package.files.items()},
            n_features=len(self.package.data_model.columns),
            config=self.terms.model,
            data={} if mock is None else {"mock": Partition.of_mock(self.package.data_model, mock)},
        )

    def plans(self) -> tuple[PrivacyPlan, EvaluationPlan]:
        """Training and evaluation plan as a hospital without stricter limits would calibrate them."""
        privacy, cohort = self.terms.privacy, self.terms.cohort
        return plans_for(
            self.terms,
            honest=honest_contributors(
                len(cohort.hospitals), cohort.survivors_needed, cohort.colluders, one_list=cohort.consistency_wave
            ),
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sampling_rate=privacy.sampling_rate,
        )

    def ring(self, length: int) -> RingTerms | None:
        """How a sum over `length` parameters lies in the secure sum, as every hospital reckons; None in local mode."""
        plan, _ = self.plans()
        if plan.honest is None:
            return None
        return ring_terms(
            clip=plan.clip,
            noise_multiplier=plan.noise_multiplier,
            honest=plan.honest,
            hospitals=len(self.terms.cohort.hospitals),
            length=length,
        )

    def rehearse(self, mock: pd.DataFrame, sandbox: Sandbox | None = None) -> Rehearsed:
        """Train a round on mock rows in the sandbox, with the trainer and the probes that hospitals use."""
        with self.worker(sandbox, mock) as worker:
            plan, _ = self.plans()
            return worker.rehearse(
                plan=plan,
                training=self.terms.training,
                divisor=plan.sampling_rate * len(mock),
                ring=self.ring(worker.description.count),
            )

    def initial_model(self, sandbox: Sandbox | None = None) -> tuple[npt.NDArray[np.float32], Description]:
        """What `build_model` starts from, float32 (d,), and its tensors in flattening order."""
        with self.worker(sandbox) as worker:
            return worker.initial_parameters(), worker.description
