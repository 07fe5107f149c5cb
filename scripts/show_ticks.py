"""Whether the tick at which a release leaves tells that a patient is in the data, with models made to be slow for one.

For each model three workers in their sandboxes do the same rounds, interleaved: on a table with the chosen patient, on
the table without, and on the same table without once more; in local mode, and in distributed mode, whose noise is
discrete. A round trains and evaluates; patients have several records. The ticks are those that a datasite would allow:
declared records -> `invented_rows` -> `Worker.measure` -> `ticks_for`, and a round leaves by `leaves_at`. What leaves
at a tick is compared round by round; rounds in which the two tables *without* differ show the machine's own noise. Any
other round in which the tick with the patient and without differ is a miss, and one is too many. "Before" is how often
the two would have been told apart by the time alone: the chance that a round with the patient takes longer than one
without.

Usage: python scripts/show_ticks.py [--rounds 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from datasites.enclave.partition import Partition
from datasites.enclave.protocol import PartitionName
from datasites.enclave.template import Template
from datasites.enclave.worker_client import Worker
from datasites.hospital.ticks import TICK, invented_rows, leaves_at, ticks_for
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import RingTerms, ring_terms

PrivacyMode = Literal["local", "distributed"]

FEATURES, CHOSEN = 8, 0.25
#: Training patients, and their records each; and what a hospital with so many would declare.
PATIENTS, RECORDS, HELD_OUT = 1_000, 2, 0.4
DECLARED = math.ceil(PATIENTS * RECORDS / (1 - HELD_OUT))
#: In distributed mode, and how many of them are relied on.
HOSPITALS, HONEST = 4, 3

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


def tables() -> tuple[Partition, Partition, Partition]:
    """Invented rows: to train on, with the chosen patient and without; and held-out ones."""
    source = np.random.default_rng(7)

    def rows(patients: int) -> Partition:
        count = patients * RECORDS
        x = source.random((count, FEATURES)).astype(np.float32)
        x[x == CHOSEN] = 0.5
        y = (source.random(count) < 0.4).astype(np.float32)
        return Partition(x, y, np.repeat(np.arange(patients, dtype=np.int64), RECORDS))

    present, held_out = rows(PATIENTS), rows(round(PATIENTS * HELD_OUT / (1 - HELD_OUT)))
    assert present.patients is not None
    present.x[:RECORDS, 0] = CHOSEN
    absent = Partition(present.x[RECORDS:], present.y[RECORDS:], present.patients[RECORDS:])
    return present, absent, held_out


@contextmanager
def workers(source: str, tables: list[dict[PartitionName, Partition]]) -> Iterator[list[Worker]]:
    """Workers on one model, each with its rows."""
    with closing(Template()) as template, ExitStack() as stack:
        yield [stack.enter_context(Worker.start(template, source, n_features=FEATURES, data=data)) for data in tables]


def rings(plan: PrivacyPlan, evaluation: EvaluationPlan, length: int) -> tuple[RingTerms | None, RingTerms | None]:
    """How a gradient and counts lie in the secure sum; None in local mode, as for a hospital."""
    if plan.honest is None:
        return None, None
    terms = partial(ring_terms, clip=1.0, honest=plan.honest, hospitals=HOSPITALS)
    return (
        terms(noise_multiplier=plan.noise_multiplier, length=length),
        terms(
            noise_multiplier=evaluation.final_multiplier,
            length=2 * evaluation.bins,
            slack=0.0,
            room=float(DECLARED),
        ),
    )


@dataclass(frozen=True)
class Shown:
    """What was seen of one model. noise: rounds in which the two without differ; misses: others that told, from 1."""

    ticks: int
    late: tuple[int, ...]
    differing: int
    noise: int
    misses: tuple[int, ...]

    @property
    def met(self) -> bool:
        """Return whether no tick told of the patient."""
        return not self.misses

    @classmethod
    def of(cls, ticks: int, seconds: np.ndarray) -> Shown:
        """Seconds that each round took, shape (rounds, 3): with the patient, without, and without again."""
        left = np.array([[round(leaves_at(0.0, ticks, one) / TICK) for one in row] for row in seconds])
        differing, noise = left[:, 0] != left[:, 1], left[:, 1] != left[:, 2]
        misses = tuple(int(number) + 1 for number in np.flatnonzero(differing & ~noise))
        return cls(ticks, tuple(int(n) for n in (left > ticks).sum(0)), int(differing.sum()), int(noise.sum()), misses)


def show(name: str, mode: PrivacyMode, rounds: int) -> Shown:
    """Run one model's rounds and print what was seen."""
    honest = HONEST if mode == "distributed" else None
    plan = PrivacyPlan(
        clip=1.0, noise_multiplier=1.0, sampling_rate=1.0, rounds=rounds, steps_per_round=1, mode=mode, honest=honest
    )
    evaluation = EvaluationPlan(edges=(0.0, 0.25, 0.5, 0.75, 1.0), final_multiplier=2.0, honest=honest)
    training = LocalTraining(steps=1, learning_rate=0.1)
    present, absent, held_out = tables()
    source = _HEAD.format(body=MODELS[name])
    with workers(source, [{"mock": Partition(absent.x[:32], absent.y[:32])}]) as (rehearsing,):
        training_rows, held_out_rows = invented_rows(DECLARED, HELD_OUT)
        ring, counts_ring = rings(plan, evaluation, rehearsing.description.count)
        measured = rehearsing.measure(
            plan=plan,
            training=training,
            divisor=PATIENTS,
            evaluation=evaluation,
            training_rows=training_rows,
            held_out_rows=held_out_rows,
            together=True,
            ring=ring,
            counts_ring=counts_ring,
        )
    ticks = ticks_for(measured)
    seconds = np.zeros((rounds, 3))
    with workers(source, [{"training": t, "held_out": held_out} for t in (present, absent, absent)]) as running:
        parameters = running[0].initial_parameters()
        for number in range(rounds):
            # In another order each time, so that none of the three is always the first.
            for place in np.roll(np.arange(3), number):
                started, worker = time.monotonic(), running[place]
                asked: dict[str, Any] = {
                    "plan": plan,
                    "training": training,
                    "divisor": PATIENTS,
                    "round": number + 1,
                    "ring": ring,
                }
                worker.train(parameters, key=os.urandom(32), **asked)
                asked = {"plan": evaluation, "kind": "final", "slots": training.slots, "ring": counts_ring}
                worker.evaluate(parameters, key=os.urandom(32), **asked)
                seconds[number, place] = time.monotonic() - started
    shown = Shown.of(ticks, seconds)
    longer = (seconds[:, :1] > seconds[:, 1:]).mean()
    one, other = 1e3 * np.median(seconds[:, 0]), 1e3 * np.median(seconds[:, 1:])
    print(
        f"{name}, {mode}: measured {1e3 * measured:.0f} ms, so {ticks} ticks of {1e3 * TICK:.0f} ms; median round "
        f"{one:.0f} ms with, {other:.0f} ms without (x{one / other:.2f}), longest {1e3 * seconds.max():.0f} ms\n"
        f"  before: by its time, a round with is the longer one in {100 * longer:.0f} % of pairs\n"
        f"  late: {shown.late[0]} rounds with, {shown.late[1]} and {shown.late[2]} without, of {rounds}\n"
        f"  ticks differ with and without in {shown.differing} rounds, between the two without in {shown.noise}; where "
        f"those two agree, with and without differ in {len(shown.misses)}: {list(shown.misses)}",
        flush=True,
    )
    return shown


def main() -> None:
    """Run all models; exit 1 if a tick tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for name, mode in itertools.product(MODELS, get_args(PrivacyMode)):
        seen = show(name, mode, arguments.rounds)
        results.append(
            {
                "name": f"{name}, {mode}",
                "value": len(seen.misses),
                "unit": f"of {arguments.rounds} rounds told apart where those without agree",
                "target": "0",
                "met": seen.met,
                **asdict(seen),
            }
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    sys.exit(0 if all(result["met"] for result in results) else 1)


if __name__ == "__main__":
    main()
