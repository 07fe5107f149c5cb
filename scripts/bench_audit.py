"""How fast the audit log is: appends with both fsyncs, and verification of 100,000 records.

Prints a table; `--json FILE` writes a list of {name, value, unit, target, met}. Times depend on the disk that
`--folder` lies on more than on anything else, so say which one it was when you quote them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from datasites.hospital.audit.log import AuditLog, verify_log
from datasites.study.identity import Identity


def measure(folder: Path, count: int) -> list[dict[str, Any]]:
    """Append `count` records as rounds do, then verify and reopen; results in milliseconds, seconds and bytes."""
    identity = Identity.generate("datasite@bench.example")
    path = folder / "audit.jsonl"
    log = AuditLog(path, identity)
    times = []
    for number in range(count):
        begin = time.perf_counter()
        log.append("round_released", study="ab" * 32, round=number, vector="cd" * 32, epsilon=number / 1e5)
        times.append(time.perf_counter() - begin)
    heads = [log.head()]
    begin = time.perf_counter()
    report = verify_log(path, identity.public_key, heads)
    verified = time.perf_counter() - begin
    if not report.ok:
        raise SystemExit(f"the log does not verify: {report.reason}")
    begin = time.perf_counter()
    AuditLog(path, identity)
    opened = time.perf_counter() - begin
    times.sort()
    rows: list[tuple[str, float, str, float | None]] = [
        ("append, median", statistics.median(times) * 1e3, "ms", 2.0),
        ("append, 99th percentile", times[int(len(times) * 0.99)] * 1e3, "ms", None),
        (f"verify {report.checked} records", verified, "s", 5.0),
        ("open", opened * 1e3, "ms", None),
        ("size of a record", path.stat().st_size / report.checked, "bytes", None),
    ]
    return [
        {
            "name": name,
            "value": value,
            "unit": unit,
            "target": target,
            "met": None if target is None else value <= target,
        }
        for name, value, unit, target in rows
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's folder for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), options.records)
    for row in results:
        met = {True: "met", False: "NOT met", None: ""}[row["met"]]
        target = "" if row["target"] is None else f"<= {row['target']:g} {row['unit']}"
        print(f"{row['name']:<28} {row['value']:>10.3f} {row['unit']:<6} {target:<10} {met}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
