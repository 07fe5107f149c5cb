"""From a submitted job to a case that people can decide: freeze, verify, check the data, rehearse, ask the policies.

Runs beside the loop of the datasite's service (`submissions`), and for people who examine a case again. Whatever goes
wrong with a submission becomes a case that says so. What people decide while a case is examined stands: the results are
then dropped. A `halt` ends it before the next thing that it would write.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models import Q

from datasites.enclave.verifier import check_source
from datasites.hospital.audit.log import Value
from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import NOT_READY, OpenCase, build_approval_terms, open_case
from datasites.hospital.cases.compliance import Preview
from datasites.hospital.cases.encoded import StagedRecords, stage_records
from datasites.hospital.cases.examination_lock import one_at_a_time
from datasites.hospital.cases.freeze import freeze, open_frozen
from datasites.hospital.cases.halt import Halt
from datasites.hospital.cases.lookup import find_case
from datasites.hospital.cases.rehearsal import mock_of, rehearse_once
from datasites.hospital.cases.summary import summarise
from datasites.hospital.config import Home
from datasites.hospital.data.patients import in_portions, remembering
from datasites.hospital.data.reading import TableReader
from datasites.hospital.data.records import require_room
from datasites.hospital.database import DATABASE_AWAY
from datasites.hospital.models import Case
from datasites.hospital.people.accounts import ReviewError
from datasites.hospital.site import Site
from datasites.hospital.ticks import reading_ticks, sleep_to_tick
from datasites.privacy.plan import PlanError
from datasites.study.audit_chain import AuditError, records
from datasites.study.errors import DatasitesError, InputError
from datasites.study.manifest import MOST_STEPS
from datasites.study.package import StudyPackage
from datasites.transport.store_errors import StoreError

if TYPE_CHECKING:
    from datasites.control.syft import SubmittedJob

log = logging.getLogger(__name__)

#: How often a submission is taken again at a start because the process ended while it was examined; then it is left to
#: people, since it may be what ended the process.
MOST_AGAIN = 3


#: What is not the submission's: a service that is unavailable, and a damaged audit log.
_NOT_ITS_OWN = (StoreError, AuditError, *DATABASE_AWAY)

_MEND = "correct it and run `datasites review recheck`"


@dataclasses.dataclass
class _Examined:
    """How far an examination has come: records that must be kept or dropped, and the case to ask the policies about.

    keeping: ticks that putting records into their place takes. population: of the patients, once that is known.
    """

    keeping: int = 1
    population: str = ""
    staged: StagedRecords | None = None
    case: OpenCase | None = None


def unfinished(site: Site) -> set[tuple[str, str]]:
    """Return submissions whose `admit` the end of a process has interrupted, to be taken again, as (name, submitter).

    Each is logged as taken again; one that was so `MOST_AGAIN` times gets a note for people instead. Of cases that a
    person has decided on none is left.
    """
    open_ones = Q(state__in=Case.OPEN, reviews__isnull=True)
    rows = list(Case.objects.filter(open_ones | Q(state=Case.State.REFUSED, recorded_in_syft=False)))
    if not rows:
        return set()
    logged: dict[object, list[str]] = defaultdict(list)
    for record in records(site.home.audit):
        logged[record.fields.get("case")].append(record.kind)
    found = set()
    for row in rows:
        kinds = logged[row.pk]
        if {"examined", "examination_dropped", "refused"} & set(kinds):
            continue
        if row.state == Case.State.REVIEW and "received" not in kinds:
            continue  # examined, and logged elsewhere: this log began later
        if kinds.count("taken_again") < MOST_AGAIN:
            site.audit.append("taken_again", case=row.pk)
            found.add((row.job_name, row.submitted_by))
        elif not row.note:
            row.note = f"the datasite ended {MOST_AGAIN + 1} times while it examined this; {_MEND}, or reject it"
            row.save(update_fields=["note"])
    return found


def admit_again(site: Site, job: SubmittedJob, halt: Halt | None = None) -> Case:
    """Go on with an `admit` that was interrupted: one submission is one case, wherever that was."""
    halt = halt or Halt()
    with one_at_a_time(site.home, _description_of(job), halt):
        row = Case.objects.filter(job_name=job.name, submitted_by=job.submitted_by).first()
        if row is None:
            return _admit(site, job, halt)
        logged = {r.kind for r in records(site.home.audit) if r.fields.get("case") == row.pk}
        if not logged & {"received", "refused"}:
            _log_taken_in(site, row)
        over = row.state not in Case.OPEN or bool(logged & {"examined", "examination_dropped"})
        return row if over else _examined_case(site, row, halt)


def admit(site: Site, job: SubmittedJob, halt: Halt | None = None) -> Case:
    """Make a case of a submission; the case's state and note say what came of it."""
    halt = halt or Halt()
    with one_at_a_time(site.home, _description_of(job), halt):
        return _admit(site, job, halt)


def _description_of(job: SubmittedJob) -> str:
    return f"submission {job.name} of {job.submitted_by}"


def _admit(site: Site, job: SubmittedJob, halt: Halt) -> Case:
    home = site.home
    try:
        package = freeze(job.files, home.frozen)
        _check_belongs_here(home, package, job)
    except _NOT_ITS_OWN:
        raise
    except Exception as error:
        halt.check()
        reason = _reason(error, "it can't be read as a study; send the researcher this line")
        row = Case.objects.create(
            study_hash="0" * 64,
            study_name=job.name[:64],
            job_name=job.name,
            submitted_by=job.submitted_by,
            state=Case.State.REFUSED,
            note=reason,
        )
        _log_taken_in(site, row)
        return row
    halt.check()
    row = Case.objects.create(
        study_hash=package.digest(),
        study_name=package.study.name,
        job_name=job.name,
        submitted_by=job.submitted_by,
        state=Case.State.INTAKE,
    )
    _log_taken_in(site, row)
    return _examined_case(site, row, halt)


def _log_taken_in(site: Site, row: Case) -> None:
    what: dict[str, Value] = {"case": row.pk, "job": row.job_name, "submitted_by": row.submitted_by}
    if row.state == Case.State.REFUSED:
        site.audit.append("refused", **what, reason=row.note[:500])
    else:
        site.audit.append("received", **what, study=row.study_hash)


def _examined_case(site: Site, row: Case, halt: Halt) -> Case:
    """Check an admitted case against code, data and policies as they are now; may be repeated until it is reviewed.

    Changes nothing when somebody has decided on the case in the meantime. Returns the case as it is then.

    Whether the records fit is for people here alone. The log holds the same records either way, of code, mock rows and
    policies, since its heads leave with other studies' releases (I16).
    """
    examined = _Examined()
    try:
        try:
            _examine(site, row, examined, halt)
        except _NOT_ITS_OWN:
            raise
        except Exception as error:
            row.state, row.note = Case.State.INTAKE, _reason(error, _MEND)
            row.approval_terms, row.approval_hash = {}, ""
        halt.check()  # a rehearsal whose worker was killed has not failed
        started = time.monotonic()
        with _keeping(site, row, examined) as keep:
            kept = _keep(row, keep)
            # Keeping takes longer the more patients there are, and the log learns of it.
            sleep_to_tick(started, examined.keeping, halt.check)
    finally:
        if examined.staged is not None:
            examined.staged.drop()
    if not kept:
        site.audit.append("examination_dropped", case=row.pk, study=row.study_hash)
        return Case.objects.get(pk=row.pk)
    looked: Preview | None = None
    if examined.case is not None:
        try:
            decision = compliance.decide(site, examined.case, "intake")
            looked = compliance.preview_of(site.home, decision)
            denied = "" if decision.allowed else f"denied when it was examined, by {', '.join(decision.controls)}"
        except _NOT_ITS_OWN:
            raise
        except Exception as error:
            denied = _reason(error, "no policy can decide on it, so it can't be approved")
        row.note = "; ".join(note for note in (row.note, denied) if note)
        Case.objects.filter(pk=row.pk, state=row.state).update(note=row.note)
    site.audit.append(
        "examined",
        case=row.pk,
        study=row.study_hash,
        findings=len(row.findings),
        rehearsal=row.rehearsal.get("outcome", "not_run"),
    )
    row = Case.objects.get(pk=row.pk)
    summarise(site.home, row, looked=looked, case=examined.case)
    return row


def _keeping(site: Site, row: Case, examined: _Examined) -> AbstractContextManager[Callable[[], str] | None]:
    """Return what puts records and patients into place; where the records don't fit, the list is rewritten as well.

    The log says that the list was rewritten, and must not show whether the records fit.
    """
    if examined.staged is not None:
        return examined.staged.keeping(site, row.study_hash)
    return remembering(site, examined.population, in_portions(())) if examined.population else nullcontext()


def _keep(row: Case, keep: Callable[[], str] | None) -> bool:
    """Store the results of an examination, unless people have acted on the case since; whether they were stored."""
    with transaction.atomic():
        # Everybody who writes to the database waits for this transaction: the same work for any number of patients.
        now = Case.objects.select_for_update().get(pk=row.pk)
        if now.state not in Case.OPEN or now.reviews.exists():
            return False
        row.listed_as = "" if keep is None else keep()
        results = ("findings", "readiness", "approval_terms", "approval_hash", "rehearsal", "listed_as")
        row.save(update_fields=["state", "note", *results])
    return True


def _reason(error: Exception, remedy: str) -> str:
    """Say why, without anything private: others' errors may quote a value, so only their kind is given."""
    if isinstance(error, DatasitesError | PlanError):
        return str(error)
    kind = type(error).__name__
    log.error("%s\n%s", kind, "".join(traceback.format_tb(error.__traceback__)))
    return f"an unexpected {kind}: {remedy}; the service's log says where it arose"


def recheck(site: Site, case_id: int) -> Case:
    """Examine a case again, for people: only one that nobody has approved yet, since its approval hash may change.

    Raises `AnotherAtWork` while another is examined, or this one is.
    """
    find_case(case_id)
    with one_at_a_time(site.home, f"case {case_id}"):
        row = find_case(case_id)
        if row.state not in Case.OPEN or row.reviews.exists():
            raise ReviewError(
                f"case {case_id}: is {row.state} or was reviewed; ask the researcher for a new submission"
            )
        with closing(site.template):
            return _examined_case(site, row, Halt())


def _check_belongs_here(home: Home, package: StudyPackage, job: SubmittedJob) -> None:
    study = package.study
    if study.researcher != job.submitted_by:
        raise InputError(f"study.toml: researcher is {study.researcher}, but {job.submitted_by} submitted it")
    if home.settings.email not in study.cohort.hospitals:
        raise InputError(f"study.toml: cohort.hospitals does not name {home.settings.email}")
    records = home.dataset(study.cohort.dataset).declared_records
    require_room(len(package.data_model.columns), records, "declared records")
    if study.rounds * study.training.steps > MOST_STEPS:
        raise InputError(
            f"study.toml: rounds x training.steps is {study.rounds * study.training.steps}, and {MOST_STEPS} noised "
            "steps are the most that a study may have; ask for fewer"
        )
    waiting = Case.objects.filter(submitted_by=job.submitted_by, state__in=Case.OPEN).count()
    if waiting >= home.settings.undecided_per_researcher:
        raise InputError(
            f"{job.submitted_by}: {waiting} submissions already wait for a decision here, the most that may; submit "
            "again under another name once the hospital has decided on one"
        )
    if Case.objects.filter(study_hash=package.digest()).exclude(state=Case.State.REFUSED).exists():
        raise InputError(f"study {package.digest()[:12]}: submitted before; see its case")


def _examine(site: Site, row: Case, examined: _Examined, halt: Halt) -> None:
    """Examine into `row`, unsaved, and stage the encoded records beside those of an earlier examination.

    Where the records don't fit, the case can't be reviewed, and all else is examined nevertheless.
    """
    home = site.home
    package = open_frozen(home.frozen, row.study_hash)
    dataset = home.dataset(package.study.cohort.dataset)
    listed = sum(one.declared_records for one in home.settings.datasets)
    examined.keeping, examined.population = reading_ticks(dataset.declared_records, 0, listed), dataset.population
    row.findings = [dataclasses.asdict(finding) for finding in check_source(package.source)]
    row.state, row.note, row.readiness = Case.State.REVIEW, "", []
    prepared = NOT_READY
    with TableReader(home) as reader:
        halt.watch(reader)
        # The mock before the table, so that nothing which that does to its reader shows in a rehearsal.
        mock = mock_of(reader, dataset, package.data_model)
        reader.ready()
        started = time.monotonic()
        try:
            examined.staged = stage_records(home, reader, package, dataset)
        except DATABASE_AWAY:
            raise
        except Exception as error:
            row.state, row.note = Case.State.INTAKE, _reason(error, _MEND)
        else:
            prepared = examined.staged.prepared
            row.readiness = [report.model_dump(mode="json") for report in examined.staged.reports]
            row.note = dataset.surplus_in_words(prepared.rows)
    # All that follows is logged with its time, which must not tell how long the records took.
    columns = len(package.data_model.columns)
    sleep_to_tick(started, reading_ticks(dataset.declared_records, columns, listed), halt.check)
    approval_terms = build_approval_terms(home, package, dataset, prepared)
    if examined.staged is not None and examined.staged.identity != approval_terms.identity:
        raise InputError("mapping.toml names another patient column than a moment ago")
    row.approval_terms, row.approval_hash = approval_terms.model_dump(mode="json"), approval_terms.digest()
    case = open_case(home, row, prepared)
    row.rehearsal = {} if row.findings else rehearse_once(site, case, mock, row.rehearsal, halt)
    measured = {name: row.rehearsal[name] for name in ("ticks", "parameters") if name in row.rehearsal}
    approval_terms = approval_terms.model_copy(update=measured)
    row.approval_terms, row.approval_hash = approval_terms.model_dump(mode="json"), approval_terms.digest()
    examined.case = dataclasses.replace(case, approval_terms=case.approval_terms.model_copy(update=measured))
    examined.case.price_ahead()
    if examined.staged is None:
        row.approval_terms, row.approval_hash = {}, ""
