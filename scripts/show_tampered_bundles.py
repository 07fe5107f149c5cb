#!/usr/bin/env python3
"""Evidence bundles that somebody tampered with, and the sentence with which the stand-alone verifier finds each.

Each is verified in a process of its own that may take 2 GiB of address space and 30 s of CPU, and may hold 256 MiB at
its peak. Exit code 1 where one is not found by the check that should find it, or takes more. Needs a checkout, since
the bundles are those of the tests.

    python scripts/show_tampered_bundles.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.adversarial.tampered_bundles import PEAK, show


def main() -> int:
    """Print a line for each bundle, and how many were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for tampered, answer in show(Path(folder)):
            failures = [line for line in answer.output.splitlines() if line.startswith("FAILED")]
            sentence = next((line for line in failures if f" {tampered.check}: " in line), answer.output[-200:])
            line: dict[str, Any] = {
                "kind": tampered.kind,
                "what": tampered.what,
                "found": answer.finds(tampered),
                "sentence": sentence.removeprefix("FAILED  "),
                "seconds": round(answer.seconds, 2),
                "memory_mib": round(answer.memory, 1),
            }
            lines.append(line)
            mark = "MISSED" if not line["found"] else "LARGE " if answer.memory > PEAK else "found "
            print(f"{mark} {answer.seconds:5.2f} s {answer.memory:4.0f} MiB  {tampered.kind}, {tampered.what}")
            print(f"       {line['sentence']}", flush=True)
    missed = sum(not line["found"] for line in lines)
    most = max(line["memory_mib"] for line in lines)
    kinds = len({line["kind"] for line in lines})
    print(f"{len(lines)} bundles of {kinds} kinds, {missed} missed; at most {most} of {PEAK} MiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=1))
    return 1 if missed or most > PEAK else 0


if __name__ == "__main__":
    sys.exit(main())
