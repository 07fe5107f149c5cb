"""What a store that meddles does to a study: 20 tricks at 10 points, alone and in pairs drawn with a fixed seed.

Each line is a whole study (three rounds and the final evaluation; a run and four hospitals, their letters, keys, shares
and masks real, their training a fixed step) over a folder in which somebody who has nobody's keys plays the trick.
"same": all hospitals are in every round, and the model is the one without tricks. "named": it is the mean of those whom
each round names, and the run says who was missing or why it stopped. Anything else is a failure. Shown are also the
slowest round in seconds and the largest quarantine in KiB, which has a bound of 33 MiB.

Usage: python scripts/show_hostile_store.py [--pairs 100] [--seed 16] [--only [TRICK ...]] [--jobs 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.researcher.hostile import run_study
from tests.transport.hostile_store import POINTS, TRICKS

Plan = tuple[tuple[str, str], ...]
"""(point, trick)."""


def plans(pairs: int, seed: int, only: list[str]) -> Iterator[Plan]:
    """None, each trick alone at each point, and pairs."""
    alone = [(point, trick) for trick in TRICKS if trick in only for point in POINTS]
    yield ()
    yield from ((one,) for one in alone)
    draw = random.Random(seed)
    everything = list(itertools.product(POINTS, TRICKS))
    yield from (tuple(draw.sample(everything, 2)) for _ in range(pairs))


def play(plan: Plan) -> dict[str, Any]:
    """One study."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True) as folder:
        try:
            return asdict(run_study(Path(folder), plan))
        except Exception as error:
            return {"wrong": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def verdict(ended: dict[str, Any]) -> str:
    """One word for how a study ended."""
    if ended["wrong"]:
        return "FAILED"
    return "same" if ended["same"] else "named"


def main() -> None:
    """See the module's text."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=16)
    arguments.add_argument("--only", nargs="*", choices=list(TRICKS), default=list(TRICKS))
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    todo, rows = list(plans(chosen.pairs, chosen.seed, chosen.only)), []
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for plan, ended in zip(todo, pool.map(play, todo), strict=True):
            words = " + ".join(f"{trick} at {point}" for point, trick in plan) or "honest store"
            row = {"plan": words, "verdict": verdict(ended), **ended}
            rows.append(row)
            figures = f"{row.get('slowest_round', 0):6.1f} s {row.get('quarantine', 0) // 1024:6d} KiB"
            print(f"{row['verdict']:7} {figures}  {words}  {row['wrong'] or row.get('says', '')}"[:200], flush=True)
    count = {word: sum(row["verdict"] == word for row in rows) for word in ("same", "named", "FAILED")}
    print(f"{len(rows)} studies: {count['same']} same, {count['named']} named, {count['FAILED']} failed")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    sys.exit(count["FAILED"] > 0)


if __name__ == "__main__":
    main()
