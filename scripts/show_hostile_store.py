"""What a store that meddles does to a study: 20 tricks at 10 points, alone and in pairs drawn with a fixed seed.

Each line is a whole study (three rounds and the final evaluation) over a folder in which somebody who has nobody's keys
plays the trick, on letters to or from one real hospital: its service with home, database, ledger, policies, mailroom,
journal and audit log, on real rows, in which only the sandboxed worker is replaced by a plain gradient step
(`tests.hospital.hostile_home`). The run and the letters, keys, shares and masks of the three others are real too.

"same": all hospitals are in every round, and the model is the one without tricks. "named": it is the mean of those whom
each round names, and the run says who was missing or why it stopped. Anything else is a failure; so is a round that the
real hospital has charged, released or answered twice or in another order, one that it has not released though the run
has its vector, an error of its own in its audit log or its service's log (`tests.alarms`; records of others' letters
have a bound instead), an audit log that does not verify, and what is beyond its bound:
rounds that one hospital missed (one a trick); the slowest round (the run's time limit); of the real hospital the
longest turn of its service without a look at its mail, records of the audit log, growth of the home and of its
quarantine, its files, and its process's memory at the peak (where these bounds come from says
`tests.hospital.hostile_home.bounds`). Letters are the files that lie in its mailbox at the end.

A pair is of two different points. Behind each trick stands how often it was played: x0 is a failure, unless the study
had no letter at that point any more because of the other trick, of which the line then says why.

Usage: python scripts/show_hostile_store.py [--pairs 100] [--seed 16] [--only [TRICK ...]]
           [--points [POINT ...]] [--jobs 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
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

from tests.hospital.hostile_home import bounds, played
from tests.researcher.hostile import ROUND_TIMEOUT
from tests.transport.hostile_store import POINTS, TRICKS

Plan = tuple[tuple[str, str], ...]
"""(point, trick)."""
HEAD = "ended   missed  round s   turn s  records  of others home KiB  quarantine  files  mem MiB  letters"


def plans(pairs: int, seed: int, tricks: list[str], points: list[str]) -> Iterator[Plan]:
    """None, each trick alone at each point, and pairs."""
    single = [(point, trick) for trick in TRICKS if trick in tricks for point in POINTS if point in points]
    yield ()
    yield from ((one,) for one in single)
    draw = random.Random(seed)
    for _ in range(pairs):
        one, other = draw.sample(list(POINTS), 2)
        yield (one, draw.choice(list(TRICKS))), (other, draw.choice(list(TRICKS)))


def play(root: Path, plan: Plan) -> dict[str, Any]:
    """One study, as a row of the table."""
    logging.basicConfig(handlers=[logging.NullHandler()])  # the real hospital's log is read, and nothing printed
    text = " + ".join(f"{trick} at {point}" for point, trick in plan) or "honest store"
    try:
        ended = played(root, plan)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
        return {"plan": text, "verdict": "FAILED", "wrong": wrong, "trace": traceback.format_exc()}
    if plan:
        text = " + ".join(
            f"{trick} at {point} x{times}{f' ({why})' if why else ''}"
            for (point, trick), times, why in zip(plan, ended.played, ended.passed, strict=True)
        )
    beyond = "; ".join(filter(None, (ended.unplayed(), ended.beyond())))
    verdict = "FAILED" if ended.wrong or beyond else "same" if ended.same else "named"
    return {"plan": text, "verdict": verdict, "beyond": beyond, **asdict(ended)}


def line(row: dict[str, Any]) -> str:
    """Return a row for people."""
    why = "; ".join(row[name] for name in ("wrong", "beyond", "says") if row.get(name))
    return f"{row['verdict']:7}{figures(row) if 'cost' in row else '':{len(HEAD) - 7}}  {row['plan']}  {why}"[:280]


def figures(row: dict[str, Any]) -> str:
    """Its columns, as `HEAD` names them."""
    cost = row["cost"]
    return (
        f"{row['missed']:7d}{row['slowest_round']:9.1f}{cost['stall']:9.2f}{cost['records']:9d}{cost['of_others']:11d}"
        f"{cost['home'] / 1024:9.0f}{cost['quarantine'] / 1024:11.0f}{cost['files']:7d}"
        f"{cost['memory'] / 1024**2:9.1f}{cost['letters']:9d}"
    )


def print_extremes(rows: list[dict[str, Any]]) -> None:
    """Print the most that any study has cost, and may cost."""
    if not rows:
        return
    most = {name: max(row[name] for row in rows) for name in ("missed", "slowest_round")}
    costs = {name: max(row["cost"][name] for row in rows) for name in rows[0]["cost"]}
    bound = {"missed": 2, "slowest_round": ROUND_TIMEOUT, "cost": {**costs, **bounds()}}
    print(f"{'most':7}{figures({**most, 'cost': costs})}")
    print(f"{'bound':7}{figures(bound)}  (letters have none: the mailbox is not the hospital's)")


def main() -> None:
    """See the module's text."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=16)
    arguments.add_argument("--only", nargs="*", choices=list(TRICKS), default=list(TRICKS))
    arguments.add_argument("--points", nargs="*", choices=list(POINTS), default=list(POINTS))
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    todo, rows = list(plans(chosen.pairs, chosen.seed, chosen.only, chosen.points)), []
    print(HEAD, flush=True)
    folder = tempfile.TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True)
    with folder as root, ProcessPoolExecutor(chosen.jobs) as pool:
        for row in pool.map(functools.partial(play, Path(root)), todo):
            rows.append(row)
            print(line(row), flush=True)
    print_extremes([row for row in rows if "cost" in row])
    count = {word: sum(row["verdict"] == word for row in rows) for word in ("same", "named", "FAILED")}
    print(f"{len(rows)} studies: {count['same']} same, {count['named']} named, {count['FAILED']} failed")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    sys.exit(count["FAILED"] > 0)


if __name__ == "__main__":
    main()
