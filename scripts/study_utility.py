"""What privacy costs in accuracy: two real multi-hospital data sets, four budgets, five ways to train.

Ways: `distributed` (noise shared through the secure sum, one colluder, consistency wave, a threshold near all; and with
the usual threshold), `local` (full noise at every hospital), `central` (all patients in one place, DP-SGD there),
`alone` (each hospital by itself, mean over hospitals), each also without noise.
Data: UCI heart disease on FLamby's split (13 features, four hospitals; client-mean accuracy at 0.5) and the
International Stroke Trial, death within 14 days, hospitals with 100 patients or more (31 features; pooled test AUC).
Epsilon is that of every hospital's plan over the whole study, with the patient as the unit (one record each); in
distributed mode it is that of the sums, which hold more noise than is priced when all hospitals survive. Delta is below
0.01 over all patients of a data set, the rule for a release on all of them. Settings are the same for all budgets.

Scaling constants below are public: clinical ranges, and for the yes/no columns of the trial their shares among the 417
hospitals with fewer than 100 patients, which are no part of the study.

Usage: python scripts/study_utility.py --heart DIR --split FILE --ist FILE [--seeds 5] [--ways WAY …] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from torch import nn

from datasites.privacy.parameters import flatten, unflatten
from datasites.privacy.plan import PrivacyPlan
from datasites.privacy.trainer import train_round
from datasites.study.manifest import LocalTraining
from datasites.study.rounds import ring_terms
from datasites.study.survivors import honest_contributors, noise_factor

EPSILONS = (0.5, 1.0, 3.0, 8.0)
RATE = 0.3
#: Hospitals that may collude with the aggregator, in distributed mode.
COLLUDERS = 1

HEART_SITES = ("cleveland", "hungarian", "switzerland", "va")
HEART_COLUMNS = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"]
#: centre, scale, low, high
HEART_NUMBERS = {
    "age": (55.0, 20.0, 20.0, 90.0),
    "trestbps": (130.0, 36.0, 80.0, 220.0),
    "chol": (240.0, 100.0, 85.0, 605.0),
    "thalach": (140.0, 50.0, 60.0, 205.0),
    "oldpeak": (1.0, 2.0, -3.0, 6.5),
}
HEART_SHARES = {"sex": 0.7, "fbs": 0.15, "exang": 0.4, "cp=2": 0.2, "cp=3": 0.25, "cp=4": 0.5}
HEART_SHARES |= {"restecg=1": 0.2, "restecg=2": 0.15}

IST_NUMBERS = {"AGE": (72.0, 24.0, 16.0, 99.0), "RSBP": (160.0, 56.0, 70.0, 295.0), "RDELAY": (20.0, 24.0, 0.0, 48.0)}
IST_SHARES = {
    **{"SEX=M": 0.54, "RSLEEP=Y": 0.3, "RCT=Y": 0.72, "RVISINF=Y": 0.35, "RATRIAL=Y": 0.16, "RASP3=Y": 0.2},
    **{"RHEP24=Y": 0.03, "RCONSC=D": 0.21, "RCONSC=U": 0.01, "STYPE=TACS": 0.23, "STYPE=PACS": 0.41},
    **{"STYPE=POCS": 0.11},
    **{f"RDEF{i}=Y": s for i, s in enumerate((0.73, 0.87, 0.76, 0.44, 0.15, 0.15, 0.1, 0.06), 1)},
    **{f"RDEF{i}=C": s for i, s in enumerate((0.01, 0.01, 0.01, 0.03, 0.2, 0.18, 0.08, 0.07), 1)},
}


@dataclass(frozen=True)
class Hospitals:
    """A data set over hospitals. x: (rows, features); site: 0 .. count-1; train: the fixed split."""

    name: str
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    site: npt.NDArray[np.int64]
    train: npt.NDArray[np.bool_]
    base_rate: float  # public: where the intercept starts
    delta: float
    score: Callable[[nn.Module, Hospitals], float]

    @property
    def count(self) -> int:
        """Number of hospitals."""
        return int(self.site.max()) + 1

    def rows(self, hospital: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Training rows of one hospital: x, y, patients."""
        chosen = np.flatnonzero(self.train & (self.site == hospital))
        return self.x[chosen], self.y[chosen], chosen


def _outputs(model: nn.Module, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        outputs: torch.Tensor = model(torch.from_numpy(x))
    return outputs[:, 0].numpy()


def pooled_auc(model: nn.Module, data: Hospitals) -> float:
    """AUC over all hospitals' test rows."""
    y = data.y[~data.train]
    ranks, ones = stats.rankdata(_outputs(model, data.x[~data.train])), float(y.sum())
    return float((ranks[y > 0].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))


def client_accuracy(model: nn.Module, data: Hospitals) -> float:
    """Mean over hospitals of accuracy at 0.5 on its test rows."""
    right = (_outputs(model, data.x) > 0) == (data.y > 0)
    return float(np.mean([right[~data.train & (data.site == hospital)].mean() for hospital in range(data.count)]))


def load_heart(folder: Path, split: Path) -> Hospitals:
    """UCI heart disease by FLamby's recipe: rows with a missing value dropped, label any disease, its split."""
    frames = []
    for number, name in enumerate(HEART_SITES):
        frame = pd.read_csv(folder / f"processed.{name}.data", header=None, na_values="?").drop(columns=[10, 11, 12])
        frame = frame.dropna()
        frame.columns = [*HEART_COLUMNS, "num"]
        frames.append(frame.assign(site=number))
    table = pd.concat(frames, ignore_index=True)
    columns = []
    for name, (centre, scale, low, high) in HEART_NUMBERS.items():
        measured = table[name].where((table[name] > 0) | (name == "oldpeak"), centre)
        columns.append((measured.clip(low, high) - centre) / scale)
    for name, share in HEART_SHARES.items():
        column, _, level = name.partition("=")
        columns.append((table[column] == float(level or 1)).astype(float) - share)
    parts = pd.read_csv(split)
    if not (parts.site.to_numpy() == table.site.to_numpy()).all():
        raise SystemExit(f"{split}: not the split of these rows")
    return Hospitals(
        "heart, client-mean accuracy",
        np.stack(columns, 1).astype(np.float32),
        (table.num > 0).to_numpy().astype(np.float32),
        table.site.to_numpy(),
        parts.train.to_numpy().astype(bool),
        0.5,
        1e-5,
        client_accuracy,
    )


def load_ist(path: Path) -> Hospitals:
    """International Stroke Trial: hospitals with 100 patients or more, 30 % of each for the test."""
    table = pd.read_csv(path)
    sizes = table.HOSPNUM.value_counts()
    table = table[table.HOSPNUM.isin(sizes[sizes >= 100].index)].sort_values("HOSPNUM", kind="stable")
    table = table.reset_index(drop=True)
    train, generator = np.ones(len(table), dtype=bool), np.random.default_rng(20240)
    for rows in table.groupby("HOSPNUM").indices.values():
        order = generator.permutation(len(rows))
        train[rows[order[: round(0.3 * len(rows))]]] = False
    columns = [
        (table[name].clip(low, high) - centre) / scale for name, (centre, scale, low, high) in IST_NUMBERS.items()
    ]
    for name, share in IST_SHARES.items():
        column, _, level = name.partition("=")
        spread = 2 * max(math.sqrt(share * (1 - share)), 0.1)
        columns.append(((table[column] == level).astype(float) - share) / spread)
    return Hospitals(
        "IST deaths, pooled AUC",
        np.stack(columns, 1).astype(np.float32),
        table.ID14.to_numpy(np.float32),
        pd.factorize(table.HOSPNUM, sort=True)[0].astype(np.int64),
        train,
        0.09,
        5e-7,
        pooled_auc,
    )


def new_model(data: Hospitals) -> nn.Linear:
    """Logistic regression: zero weights, intercept at the public base rate."""
    model = nn.Linear(data.x.shape[1], 1)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, math.log(data.base_rate / (1 - data.base_rate)))
    return model


def _plan(epsilon: float | None, delta: float, **terms: Any) -> PrivacyPlan:
    """Calibrated, or without noise that matters when epsilon is None."""
    plan = PrivacyPlan.calibrate(epsilon or 1.0, delta, sampling_rate=RATE, **terms)
    return plan if epsilon else plan.model_copy(update={"noise_multiplier": 1e-6})


def near_all(hospitals: int) -> int:
    """Return a threshold that tolerates one hospital in twelve away: 4 of 4, 45 of 49."""
    return hospitals - hospitals // 12


def usual(hospitals: int) -> int:
    """Return the threshold of a study that states none."""
    return max(3, 2 * hospitals // 3 + 1)


def distributed(data: Hospitals, epsilon: float | None, threshold: int) -> nn.Module:
    """40 rounds of one step; each hospital adds its share of the noise, on the grid of the secure sum.

    All survive, so the sum holds more noise than is priced, by `noise_factor`.
    """
    model, everyone = new_model(data), int(data.train.sum())
    honest = honest_contributors(data.count, threshold, COLLUDERS, one_list=True)
    plan = _plan(epsilon, data.delta, clip=2.0, rounds=40, steps_per_round=1, mode="distributed", honest=honest)
    if epsilon is None:
        plan = plan.model_copy(update={"noise_multiplier": 1e-2})  # the ring has no room for less on a finer grid
    ring = ring_terms(
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        honest=honest,
        hospitals=data.count,
        length=model.weight.numel() + 1,
    )
    local, vector = LocalTraining(steps=1, learning_rate=1.0), flatten(model).astype(np.float64)
    for round in range(1, plan.rounds + 1):
        updates = []
        for hospital in range(data.count):
            unflatten(model, vector)
            part = data.rows(hospital)
            result = train_round(model, None, *part, plan, local, divisor=RATE * everyone, round=round, ring=ring)
            updates.append(result.update)
        vector = vector - local.learning_rate / (RATE * everyone) * ring.grid * np.sum(updates, axis=0)
    unflatten(model, vector)
    return model


def local(data: Hospitals, epsilon: float | None) -> nn.Module:
    """4 rounds of 10 steps; full noise at each hospital, FedAvg by declared training sizes."""
    model = new_model(data)
    plan = _plan(epsilon, data.delta, clip=1.0, rounds=4, steps_per_round=10)
    training, vector = LocalTraining(steps=10, learning_rate=0.1), flatten(model).astype(np.float64)
    sizes = np.bincount(data.site[data.train], minlength=data.count)
    for round in range(1, plan.rounds + 1):
        total = np.zeros_like(vector)
        for hospital, size in enumerate(sizes):
            unflatten(model, vector)
            batch = RATE * float(size)
            part = data.rows(hospital)
            result = train_round(model, None, *part, plan, training, divisor=batch, round=round)
            total += result.update * (size / sizes.sum())
        vector = vector + total
    unflatten(model, vector)
    return model


def central(data: Hospitals, epsilon: float | None) -> nn.Module:
    """All training patients in one place: 40 steps."""
    model, rows = new_model(data), np.flatnonzero(data.train)
    plan = _plan(epsilon, data.delta, clip=2.0, rounds=1, steps_per_round=40)
    training = LocalTraining(steps=40, learning_rate=1.0)
    train_round(model, None, data.x[rows], data.y[rows], rows, plan, training, divisor=RATE * len(rows))
    return model


def single_hospital(data: Hospitals, epsilon: float | None) -> float:
    """Each hospital by itself, 40 steps; mean of its model's score."""
    plan = _plan(epsilon, data.delta, clip=1.0, rounds=1, steps_per_round=40)
    training, scores = LocalTraining(steps=40, learning_rate=0.1), []
    for hospital in range(data.count):
        model, (x, y, patients) = new_model(data), data.rows(hospital)
        train_round(model, None, x, y, patients, plan, training, divisor=RATE * len(x))
        scores.append(data.score(model, data))
    return float(np.mean(scores))


WAYS: dict[str, Callable[[Hospitals, float | None], float]] = {
    "central": lambda data, epsilon: data.score(central(data, epsilon), data),
    "distributed": lambda data, epsilon: data.score(distributed(data, epsilon, near_all(data.count)), data),
    "distributed, usual threshold": lambda data, epsilon: data.score(
        distributed(data, epsilon, usual(data.count)), data
    ),
    "local": lambda data, epsilon: data.score(local(data, epsilon), data),
    "alone": single_hospital,
}
#: (data set, way, epsilon) -> least mean over seeds.
TARGETS = {
    ("IST", "distributed", 0.5): 0.780,
    ("IST", "distributed", 1.0): 0.783,
    ("IST", "local", 1.0): 0.750,
    ("IST", "local", 3.0): 0.778,
    ("heart", "local", 1.0): 0.80,
    ("heart", "distributed", 1.0): 0.80,
}


def main() -> None:
    """Run all, print a Markdown table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heart", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--ist", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    started = time.perf_counter()
    for data in (load_heart(arguments.heart, arguments.split), load_ist(arguments.ist)):
        print(f"\n| {data.name}, delta {data.delta:g} | no DP | " + " | ".join(f"eps {e:g}" for e in EPSILONS) + " |")
        print("|---" * (len(EPSILONS) + 2) + "|")
        for way, run in ((way, WAYS[way]) for way in arguments.ways):
            cells = []
            for epsilon in (None, *EPSILONS):
                repeats = arguments.seeds if epsilon else 1
                scores = [run(data, epsilon) for _ in range(repeats)]
                cells.append(f"{np.mean(scores):.3f}" + (f" ± {np.std(scores, ddof=1):.3f}" if repeats > 1 else ""))
                target = TARGETS.get((data.name.split()[0].strip(","), way, epsilon or 0.0))
                results.append(
                    {
                        "name": f"{data.name}, {way}, epsilon {epsilon or 'none'}",
                        "value": round(float(np.mean(scores)), 4),
                        "unit": "score",
                        "target": f">= {target}" if target else "",
                        "met": bool(np.mean(scores) >= target) if target else None,
                    }
                )
            print(f"| {way} | " + " | ".join(cells) + " |", flush=True)
        for name, threshold in (("distributed", near_all(data.count)), ("usual threshold", usual(data.count))):
            factor = noise_factor(data.count, threshold - COLLUDERS)
            print(
                f"{name}: {threshold} of {data.count} must survive, noise {factor:.3f} times what is priced if all do"
            )
    for result in results:
        if result["target"]:
            verdict = "met" if result["met"] else "MISSED"
            print(f"{result['name']}: {result['value']} (target {result['target']}): {verdict}")
    print(f"{arguments.seeds} runs each, {time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
