"""A datasite whose worker fails for real in certain rounds of a study, for the tests of failures.

Round 2: the worker is killed whenever it is asked. Round 3: it has no time to answer. Round 4: it is killed once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """`python failing_datasite.py --home HOME`: serve, with a worker that meets misfortune."""
    from datasites import cli
    from datasites.enclave.worker_client import Timeouts
    from datasites.hospital.database import connect

    connect(Path(sys.argv[sys.argv.index("--home") + 1]))
    from datasites.hospital.rounds import row_work

    train = row_work.RowWork._train
    killed = set()

    def failing(work, worker, case, manifest, parameters, key):  # type: ignore[no-untyped-def]
        if manifest.round == 2 or (manifest.round == 4 and 4 not in killed):
            killed.add(manifest.round)
            os.kill(worker.pid, signal.SIGKILL)
        worker._timeouts = Timeouts(train=0.0001 if manifest.round == 3 else 600.0)
        return train(work, worker, case, manifest, parameters, key)

    row_work.RowWork._train = failing  # type: ignore[method-assign]
    sys.argv[1:] = ["serve", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
