"""The secure sum is FedAvg: with training made plain, 15 rounds equal a FedAvg computed in the clear."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasites.study.manifest import UPDATE_BOUND
from datasites.study.rounds import safe_scale
from tests.e2e.noiseless_datasite import plain_update
from tests.e2e.support import KEYS, LocalDatasites, training_rows

ROUNDS = 15


def test_fifteen_rounds_equal_plain_weighted_fedavg(tmp_path: Path) -> None:
    local = LocalDatasites(tmp_path, serve=[str(Path(__file__).with_name("noiseless_datasite.py"))])
    try:
        local.start(*KEYS)
        study = local.study("plain")
        with local.federation() as federation:
            federation.submit(study)
            local.approve(study)
            federation.wait(study, timeout=180, progress=False)
            run = federation.start(study)
            run.complete(rounds=1, progress=False)
            models = [np.concatenate([part.ravel() for part in run.model.values()])]
            for _ in range(1, ROUNDS):
                run.next_round()
                models.append(np.concatenate([part.ravel() for part in run.model.values()]))
            assert all(len(record.survivors) == 4 for record in run.state.rounds)
    finally:
        local.stop()
    rows = {key: training_rows(local, key, study.hash) for key in KEYS}
    declared = {key: local.hospital(key).declared_patients for key in KEYS}
    total = sum(declared.values())
    # Every weighted update is rounded to one step of the ring, up or down, and so is every weight.
    step = 1 / safe_scale(UPDATE_BOUND, len(KEYS))
    share = total / study.terms.cohort.max_patients
    tolerance = 2 * len(KEYS) * step / share + 1e-6
    start = np.zeros_like(models[0])
    for model in models:
        updates = {key: plain_update(start, *rows[key]).astype(np.float64) for key in KEYS}
        weighted = sum(declared[key] / total * updates[key] for key in KEYS)
        unweighted = sum(updates.values()) / len(KEYS)
        assert np.abs(model - (start + weighted)).max() < tolerance
        assert np.abs(weighted - unweighted).max() > 100 * tolerance, "the comparison could not tell the two apart"
        start = model
