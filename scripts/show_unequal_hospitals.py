#!/usr/bin/env python3
"""Distributed mode among unequal hospitals: what is refused, with which figure, and what noise an opened sum holds.

Rounds are real: terms are checked as at intake, manifests as before a round, noise is the trainer's, and the sum is
masked, signed and opened; only rows are made up, with gradients of zero. Each line compares the sd of the opened sum
over 200,000 coordinates with what is priced times the stated factor, and with what is priced once one colluder's noise
is taken off. Exit code 1 where a sum is 2 % off or holds less than is priced, by more than five times what a sample of
that many coordinates scatters (1 / sqrt(2 n) of the sd), or where all lines together are 0.2 % off. Needs a checkout,
since it runs on the tests' cohort.

    python scripts/show_unequal_hospitals.py [--hospitals 4 10 49] [--coordinates 200000]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasites.privacy.plan import PlanError
from datasites.secagg.errors import TooFew
from tests.hospital.conftest import _home as home
from tests.hospital.unequal import KINDS, Terms, open_round

#: Noise of one line, and of all together, may be this much off what is stated.
OFF, OFF_IN_ALL = 0.02, 0.002


def thresholds(hospitals: int) -> tuple[int, ...]:
    """From the usual threshold to all of them."""
    usual = max(3, 2 * hospitals // 3 + 1)
    return tuple(sorted({usual, (usual + hospitals) // 2, hospitals}))


def main() -> int:
    """Print one line for each kind of hospital, threshold and number of survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hospitals", type=int, nargs="+", default=[4, 10, 49])
    parser.add_argument("--coordinates", type=int, default=200_000)
    arguments = parser.parse_args()
    usual, failed, found = home.dataset("heart"), 0, []
    sampled = 5 / math.sqrt(2 * arguments.coordinates)
    for count in arguments.hospitals:
        for kind, (changes, _) in KINDS.items():
            datasets = [usual] * (count - 1) + [usual.model_copy(update=changes)]
            print(f"\n{count} hospitals, one with {kind} ({', '.join(f'{k} = {v}' for k, v in changes.items())})")
            terms = Terms()
            for threshold in thresholds(count):
                for survivors in sorted({threshold, (threshold + count) // 2, count}):
                    for dead in (0, 1):
                        line = (
                            f"  threshold {threshold:3}, {survivors:3} survive, {dead} of them gone before the shares: "
                        )
                        asked = {"threshold": threshold, "survivors": survivors, "dead_between": dead}
                        asked |= {"dimension": arguments.coordinates}
                        try:
                            opened = open_round(home, datasets, terms, seed=kind, **asked)
                        except PlanError as refusal:
                            print(f"  refused: {refusal}")
                            terms = terms.fitting(refusal)
                            print(f"  a study that fits: {terms}")
                            opened = open_round(home, datasets, terms, seed=kind, **asked)
                        except TooFew as error:
                            print(f"{line}nothing opens ({error})")
                            continue
                        good = abs(opened.of_stated - 1) <= OFF and opened.of_priced >= 1 - sampled
                        failed += not good
                        found.append(opened.of_stated)
                        print(
                            f"{line}noise {opened.of_stated:.4f} of {opened.factor:.3f} x priced; less the colluder's "
                            f"{opened.of_priced:.4f} of priced{'' if good else '  WRONG'}",
                            flush=True,
                        )
    together = statistics.mean(found)
    print(f"\n{failed} of {len(found)} wrong; all together {together:.4f} of what is stated")
    return 1 if failed or abs(together - 1) > OFF_IN_ALL else 0


if __name__ == "__main__":
    sys.exit(main())
