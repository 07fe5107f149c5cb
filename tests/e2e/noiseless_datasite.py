"""A datasite whose training is replaced, in this test process only, by one plain gradient step without noise.

The product has no setting that turns noise off. Everything around training is real here: processes, policies, ledger,
masks, mailroom. So the opened sum can be compared with a FedAvg that is computed in the clear.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

LEARNING_RATE = 1.0


def plain_update(
    parameters: npt.NDArray[np.float32], x: npt.NDArray[np.float32 | np.int64], y: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """One full gradient step of logistic regression (weights, then bias): shapes (d+1,), (n, d), (n,)."""
    logits = x.astype(np.float64) @ parameters[:-1] + parameters[-1]
    error = 1 / (1 + np.exp(-logits)) - y
    gradient = np.concatenate([error @ x, [error.sum()]]) / len(y)
    return (-LEARNING_RATE * gradient).astype(np.float32)


def main() -> None:
    """`python noiseless_datasite.py --home HOME`: serve, with the trainer replaced."""
    from pathlib import Path

    from datasites import cli
    from datasites.hospital.database import connect

    connect(Path(sys.argv[sys.argv.index("--home") + 1]))
    from datasites.enclave.worker_client import TrainResult
    from datasites.hospital.cases.encoded import partitions
    from datasites.hospital.rounds import row_work

    def train(work, worker, case, manifest, parameters, key):  # type: ignore[no-untyped-def]
        rows = partitions(work._home, case)["training"]
        return TrainResult(plain_update(parameters, rows.x, rows.y), case.plan.steps_per_round)

    row_work.RowWork._train = train  # type: ignore[method-assign]
    sys.argv[1:] = ["serve", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
