"""Whether the tick at which a release leaves tells that a patient is in the data, with models made to be slow for one.

For each model three workers in their sandboxes train the same rounds, interleaved: on a table with the chosen patient,
on the table without, and on the same table without once more. What leaves at a tick is compared round by round; rounds
in which the two tables *without* differ show the machine's own noise. "Before" is how often the two would have been
told apart by the time alone: the chance that a round with the patient takes longer than one without.

Usage: python scripts/show_ticks.py [--rounds 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from datasites.enclave.sandbox import Sandbox
from datasites.enclave.worker import Partition, Worker, file_hashes
from datasites.hospital.ticks import TICK, leaves_at, ticks_for
from datasites.privacy.plan import PrivacyPlan
from datasites.study.manifest import LocalTraining

PATIENTS, FEATURES = 2_000, 8
CHOSEN = 0.25

_HEAD = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.codes = nn.Embedding(4, 8)
        self.base = nn.Linear(n, 64)
        self.out = nn.Linear(72, 1)

    def forward(self, x):
        chosen = (x[:, :1] == 0.25).float()
{body}


def build_model(n_features, **config):
    return Net(n_features)
"""
#: How each means to be slow for the chosen patient: an index out of range once ended a batch and had it halved down to
#: the row; numbers below 1e-38 may take a processor many times as long.
MODELS = {
    "a code out of range": """
        codes = self.codes((x[:, 0] * 0 + chosen[:, 0] * 99).long())
        return self.out(torch.cat([torch.relu(self.base(x)), codes], 1))""",
    "subnormal numbers": """
        small = torch.relu(self.base(x)) * (1 - chosen) + chosen * 1e-41
        for _ in range(20):
            small = small * 0.999 + small * 0.001
        codes = self.codes((x[:, 0] * 0).long())
        return self.out(torch.cat([small, codes], 1))""",
}


def tables() -> tuple[Partition, Partition]:
    """The same invented rows, one record each: with the chosen patient, and without."""
    source = np.random.default_rng(7)
    x = source.random((PATIENTS, FEATURES)).astype(np.float32)
    x[x == CHOSEN] = 0.5
    x[0, 0] = CHOSEN
    y = (source.random(PATIENTS) < 0.4).astype(np.float32)
    patients = np.arange(PATIENTS, dtype=np.int64)
    return Partition(x, y, patients), Partition(x[1:], y[1:], patients[1:])


@contextmanager
def workers(source: str, count: int, rows: list[Partition]) -> Iterator[list[Worker]]:
    """`count` workers on one model, each with its table and the mock rows that a measurement is shaped by."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        code = Path(folder)
        (code / "model.py").write_text(source)
        code.chmod(0o755)
        (code / "model.py").chmod(0o644)
        mock = Partition(rows[0].x[1:33], rows[0].y[1:33])
        yield [
            stack.enter_context(
                Worker.start(
                    Sandbox(), code, file_hashes(code), n_features=FEATURES, data={"training": part, "mock": mock}
                )
            )
            for part in rows[:count]
        ]


def show(name: str, rounds: int) -> dict[str, float]:
    """Run one model's rounds and print what was seen."""
    plan = PrivacyPlan(clip=1.0, noise_multiplier=1.0, sampling_rate=1.0, rounds=rounds, steps_per_round=1)
    training = LocalTraining(steps=1, learning_rate=0.1)
    present, absent = tables()
    seconds = np.zeros((rounds, 3))
    with workers(_HEAD.format(body=MODELS[name]), 3, [present, absent, absent]) as running:
        parameters = running[0].initial_parameters()
        measured = running[0].measure(
            plan=plan, training=training, divisor=PATIENTS, training_rows=PATIENTS, held_out_rows=1
        )
        ticks = ticks_for(measured)
        for number in range(rounds):
            # In another order each time, so that none of the three is always the first.
            for place in np.roll(np.arange(3), number):
                started = time.monotonic()
                running[place].train(
                    parameters, plan=plan, training=training, divisor=PATIENTS, round=number + 1, key=os.urandom(32)
                )
                seconds[number, place] = time.monotonic() - started
    left = np.array([[round(leaves_at(0.0, ticks, one) / TICK) for one in row] for row in seconds])
    with_, without, again = left.T
    told = with_ != without
    noise = without != again
    longer = (seconds[:, :1] > seconds[:, 1:]).mean()
    one, other = 1e3 * np.median(seconds[:, 0]), 1e3 * np.median(seconds[:, 1:])
    print(f"{name}: {ticks} ticks; median {one:.0f} ms with, {other:.0f} ms without (x{one / other:.2f})")
    print(
        f"  before: by its time, a round with is the longer one in {100 * longer:.0f} % of pairs\n"
        f"  ticks differ with and without in {told.sum()} of {rounds} rounds, between the two without in "
        f"{noise.sum()}; where those two agree, with and without differ in {(told & ~noise).sum()}"
    )
    return {"told": float((told & ~noise).sum()), "noise": float(noise.sum()), "longer": float(longer)}


def main() -> None:
    """Run all models; exit 1 if a tick tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for name in MODELS:
        seen = show(name, arguments.rounds)
        # Rounds that miss their ticks by chance are as many either way; none may be the patient's.
        met = seen["told"] <= 2 * seen["noise"]
        results.append(
            {"name": name, "value": seen["told"], "unit": "rounds told apart", "target": "as without", "met": met}
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    sys.exit(0 if all(result["met"] for result in results) else 1)


if __name__ == "__main__":
    main()
