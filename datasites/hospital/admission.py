"""From a submitted job to a case that people can decide: freeze, verify, check the data, rehearse, ask the policies.

Runs in the datasite's service. Whatever goes wrong with a submission becomes a case that says so; nothing that a
researcher sends can raise out of `admit`.
"""

from __future__ import annotations

import dataclasses

from datasites.enclave.protocol import PartitionName
from datasites.enclave.sandbox import Sandbox, SandboxUnavailable
from datasites.enclave.verifier import verify
from datasites.enclave.worker import Partition, Timeouts, Worker, WorkerError
from datasites.hospital import compliance
from datasites.hospital.cases import OpenCase, build_terms, open_case, prepare_records
from datasites.hospital.config import Home
from datasites.hospital.harmonise import read_table
from datasites.hospital.intake import freeze, open_frozen
from datasites.hospital.models import Case
from datasites.hospital.review import ReviewError, find_case
from datasites.hospital.site import Site
from datasites.privacy.plan import PlanError
from datasites.study.canonical import sha256_hex
from datasites.study.errors import DatasitesError, InputError
from datasites.study.package import StudyPackage
from datasites.transport.syft import SubmittedJob


def start_worker(home: Home, case: OpenCase, data: dict[PartitionName, Partition]) -> Worker:
    """A sandboxed worker on the case's frozen copy; raises `WorkerError` or `SandboxUnavailable`."""
    seconds = home.settings.round_seconds
    return Worker.start(
        Sandbox(home.settings.sandbox),
        home.frozen / case.row.study_hash,
        {name: sha256_hex(content) for name, content in case.package.files.items()},
        n_features=len(case.package.data_model.columns),
        config=case.study.model,
        data=data,
        timeouts=Timeouts(train=seconds, evaluate=seconds),
    )


def admit(site: Site, job: SubmittedJob) -> Case:
    """Make a case of a submission; the case's state and note say what came of it."""
    home = site.home
    try:
        package = freeze(job.files, home.frozen)
        _check_belongs_here(home, package, job)
    except DatasitesError as error:
        row = Case.objects.create(
            study_hash="0" * 64,
            study_name=job.name[:64],
            job_name=job.name,
            submitted_by=job.submitted_by,
            state=Case.State.REFUSED,
            note=str(error),
        )
        site.audit.append("refused", case=row.pk, job=job.name, submitted_by=job.submitted_by, reason=str(error)[:500])
        return row
    row = Case.objects.create(
        study_hash=package.digest(),
        study_name=package.study.name,
        job_name=job.name,
        submitted_by=job.submitted_by,
        state=Case.State.INTAKE,
    )
    site.audit.append("received", case=row.pk, job=job.name, submitted_by=job.submitted_by, study=row.study_hash)
    return examine(site, row)


def examine(site: Site, row: Case) -> Case:
    """Check an admitted case against code, data and policies as they are now; may be repeated until it is approved."""
    home = site.home
    try:
        _examine(site, row)
        row.state, row.note = Case.State.REVIEW, ""
    except (DatasitesError, PlanError, SandboxUnavailable) as error:
        row.state, row.note = Case.State.INTAKE, str(error)
    row.save()
    if row.state == Case.State.REVIEW:
        decision = compliance.decide(site, open_case(home, row), "intake")
        row.note = "" if decision.allowed else f"denied by {', '.join(decision.controls)}"
        row.save()
    site.audit.append(
        "examined",
        case=row.pk,
        study=row.study_hash,
        state=str(row.state),
        findings=len(row.findings),
        rehearsal=row.rehearsal.get("outcome", "not_run"),
        note=row.note[:500],
    )
    return row


def recheck(site: Site, number: int) -> Case:
    """`examine` for people: only a case that nobody has approved yet, since it may change the approval hash."""
    row = find_case(number)
    if row.state not in (Case.State.INTAKE, Case.State.REVIEW) or row.reviews.exists():
        raise ReviewError(f"case {number}: is {row.state} or was reviewed; ask the researcher for a new submission")
    return examine(site, row)


def _check_belongs_here(home: Home, package: StudyPackage, job: SubmittedJob) -> None:
    study = package.study
    if study.researcher != job.submitted_by:
        raise InputError(f"study.toml: researcher is {study.researcher}, but {job.submitted_by} submitted it")
    if home.settings.email not in study.cohort.hospitals:
        raise InputError(f"study.toml: cohort.hospitals does not name {home.settings.email}")
    home.dataset(study.cohort.dataset)
    if Case.objects.filter(study_hash=package.digest()).exclude(state=Case.State.REFUSED).exists():
        raise InputError(f"study {package.digest()[:12]}: submitted before; see its case")


def _examine(site: Site, row: Case) -> None:
    home = site.home
    package = open_frozen(home.frozen, row.study_hash)
    dataset = home.dataset(package.study.cohort.dataset)
    row.findings = [dataclasses.asdict(finding) for finding in verify(package.source)]
    prepared, reports = prepare_records(home, package, dataset)
    row.readiness = [report.model_dump(mode="json") for report in reports]
    terms = build_terms(home, package, dataset, prepared.version)
    row.terms = terms.model_dump(mode="json")
    row.approval_hash = terms.digest()
    row.rehearsal = {} if row.findings else _rehearse(home, row)


def _rehearse(home: Home, row: Case) -> dict[str, object]:
    case = open_case(home, row)
    try:
        mock = Partition.of_mock(case.package.data_model, read_table(home.root / case.dataset.mock))
        worker = start_worker(home, case, {"mock": mock})
    except WorkerError as error:
        return {"outcome": "failed", "reason": f"{error.rule}: {error}"}
    with worker:
        try:
            result = worker.rehearse(
                plan=case.plan,
                training=case.study.training,
                expected_batch=case.plan.sampling_rate * len(mock.y),
                grid=case.grid,
            )
        except WorkerError as error:
            return {"outcome": "failed", "reason": f"{error.rule}: {error}"}
    report = result.model_dump(mode="json")
    return {**report, "outcome": "failed" if report.get("findings") else "passed"}
