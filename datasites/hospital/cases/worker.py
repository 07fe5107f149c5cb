"""Starts sandboxed workers: the one place in a hospital where submitted code begins."""

from __future__ import annotations

from collections.abc import Callable

from datasites.enclave.partition import Partition
from datasites.enclave.protocol import PartitionName
from datasites.enclave.worker_client import Timeouts, Worker
from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.site import Site
from datasites.study.errors import DatasitesError


class MayNotRun(DatasitesError):
    """There is no sandbox, and no risk acceptance in force under which submitted code may run all the same."""

    def __init__(self) -> None:
        super().__init__(
            "the sandbox is off, so submitted code does not run before two people have accepted that risk; set `mode = "
            '"required"` under [sandbox], or enter and confirm a risk acceptance for no_sandbox, and examine the case '
            "again"
        )


def start_worker(
    site: Site,
    case: OpenCase,
    data: dict[PartitionName, Partition],
    seconds: float,
    began: Callable[[Worker], None] | None = None,
) -> Worker:
    """Start a sandboxed worker on what `open_case` found to be approved: the one place where submitted code begins.

    Raises `MayNotRun` where there is no sandbox and nobody has accepted that, `WorkerError`, or `SandboxUnavailable`.
    seconds: wall time for one request to train or evaluate. began: as in `Worker.start`.
    """
    if not compliance.may_run_code(site.home, case):
        raise MayNotRun
    return Worker.start(
        site.template,
        case.package.source,
        n_features=len(case.package.data_model.columns),
        config=case.study.model,
        data_model=case.package.data_model,
        data=data,
        timeouts=Timeouts(train=seconds, evaluate=seconds),
        parameters=case.approval_terms.parameters or None,  # none before a rehearsal has counted them
        began=began,
    )
