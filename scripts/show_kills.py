"""200 kills (-9) of datasites and of the researcher, at random moments of setup, rounds and closing, with a fixed seed.

Four real datasites (UCI heart disease) and a researcher, each in processes of their own, run study after study; every
second or so one of the five is killed and started again. After each study: it is closed; each hospital has charged each
round once, before it released it, and released it once, or not at all and then the researcher has no vector of it; each
audit chain holds, against the heads that the researcher kept; nobody has anything in quarantine; and since the first
study began no hospital's audit log has an alarm, whatever it is about, nor its service's log an error or a traceback,
nor the researcher's (`tests.alarms`). The first thing that is not so ends this with an error. So does a phase into
which no kill fell: setup is from the offer until the hospitals are ready, closing from the end of the final evaluation
until the hospitals' accounts have come.

Usage: python scripts/show_kills.py [--kills 200] [--seed 16]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.kills import in_words, kill_while_studies_run
from tests.e2e.support import KEYS, LocalDatasites


def main() -> None:
    """See the module's text."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=16)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        datasites = LocalDatasites(Path(folder), epsilon=10_000.0)
        try:
            datasites.start(*KEYS)
            studies, kills = kill_while_studies_run(datasites, chosen.kills, chosen.seed)
        finally:
            datasites.stop()
    print(f"{in_words(kills)} in {studies} studies: no round was made twice, and no false alarm")


if __name__ == "__main__":
    main()
