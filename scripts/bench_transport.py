"""What the mailroom costs per round: two waves between a researcher and hospitals in their own processes, no training.

One round: the researcher broadcasts a manifest and the model (4 bytes per parameter), each hospital answers with a
vector of that size, the researcher sends the survivors, each hospital answers with a small message; then the round
before is removed from the store. Prints a table; `--json FILE` writes [{name, value, unit, target, met}].

    python scripts/bench_transport.py [--rounds 100] [--hospitals 4] [--sizes 1000 1000000 10000000] [--store URL]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import secrets
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from datasites.control.connection import StoreConnection
from datasites.control.sealer import SyftSealer, open_keys, syft_fingerprint
from datasites.control.sync_state import SyncLog
from datasites.study.identity import Identity
from datasites.study.roster import Roster, RosterEntry
from datasites.transport.mailroom import Mailroom
from datasites.transport.quarantine import Quarantine
from datasites.transport.store import Store

RESEARCHER = "researcher@bench.example"
TARGETS_MS = {1_000: 60.0, 1_000_000: 150.0, 10_000_000: 1000.0}
PATIENCE = 120.0
MB = 1e6


def mailroom(email: str, home: Path, url: str, roster: Roster) -> Mailroom:
    """Make a party's mailroom, its public keys published."""
    keys = open_keys(email, home / email / "syft_keys.json")
    store = Store(url)
    connection = StoreConnection(
        email=email,
        store=store,
        log=SyncLog(home / email / "control.sqlite"),
        quarantine=Quarantine(home / email / "quarantine"),
        roster=roster,
    )
    connection.write_encryption_bundle(email, json.dumps({"public_encryption_bundle": keys.get_public_bundle()}))
    return Mailroom(email, store, SyftSealer(keys, roster, connection.stored_bundle), home / email / "mail")


def hospital(email: str, home: Path, url: str, roster: Roster, study_hash: str, rounds: int, pipe: Connection) -> None:
    """Answer `rounds` rounds, then report (base RSS, peak RSS) in bytes and CPU seconds."""
    room = mailroom(email, home, url, roster)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send("ready")
    pipe.recv()
    cpu = time.process_time()
    for number in range(1, rounds + 1):
        manifest = (RESEARCHER, study_hash, number, "manifest")
        room.wait([manifest], PATIENCE)
        letter = room.receive(*manifest)
        assert letter is not None
        assert letter.blob is not None
        vector = bytearray(letter.blob)
        vector[:16] = secrets.token_bytes(16)  # a masked update differs from the model and from all others
        room.send(RESEARCHER, study_hash, number, "vector", {"round": number}, vector)
        survivors = (RESEARCHER, study_hash, number, "survivors")
        room.wait([survivors], PATIENCE)
        assert room.receive(*survivors) is not None
        room.send(RESEARCHER, study_hash, number, "shares", {"shares": ["00" * 64] * 4})
        if number > 1:
            room.collect(study_hash, before=number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send((base, peak, time.process_time() - cpu))


def run(
    size: int, rounds: int, hospitals: int, url: str, home: Path
) -> tuple[list[float], list[tuple[int, int, float]]]:
    """Seconds of each round, and what the hospitals report."""
    emails = [f"hospital{index}@bench.example" for index in range(hospitals)]
    study, entries = secrets.token_hex(32), []
    for email in (RESEARCHER, *emails):
        keys = open_keys(email, home / email / "syft_keys.json")
        entries.append(
            RosterEntry(
                organisation="Bench",
                email=email,
                role="researcher" if email == RESEARCHER else "hospital",
                public_key=Identity.generate(email).public_key,
                syft_fingerprint=syft_fingerprint(keys),
            )
        )
    roster = Roster(entries=tuple(entries))
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for email in emails:
        ours, theirs = context.Pipe()
        processes.append(
            context.Process(target=hospital, args=(email, home, url, roster, study, rounds, theirs), daemon=True)
        )
        processes[-1].start()
        pipes.append(ours)
    room = mailroom(RESEARCHER, home, url, roster)
    model = bytearray(os.urandom(4 * size))
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    seconds = []
    for number in range(1, rounds + 1):
        model[:16] = secrets.token_bytes(16)
        start = time.perf_counter()
        room.send_all(emails, study, number, "manifest", {"round": number}, model)
        for kind in ("vector", "shares"):
            expected = [(email, study, number, kind) for email in emails]
            taken: set[str] = set()
            while len(taken) < len(emails):
                left = [item for item in expected if item[0] not in taken]
                for item in room.wait(left, PATIENCE):
                    assert room.receive(*item) is not None
                    taken.add(item[0])
            if kind == "vector":
                room.send_all(emails, study, number, "survivors", {"survivors": [*emails]})
        seconds.append(time.perf_counter() - start)
        if number > 1:
            room.collect(study, before=number)
    reports = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(30)
    return seconds, reports


def idle_share(seconds: float, after: float) -> float:
    """Per cent of a core that a wait on an empty folder uses from `after` to `seconds` after its start."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(scratch)
        cpu, start = time.process_time(), time.perf_counter()
        for _ in store.changes(["mail/empty"], seconds):
            if time.perf_counter() - start < after:
                cpu = time.process_time()
        return 100 * (time.process_time() - cpu) / (seconds - after)


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--hospitals", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(TARGETS_MS))
    parser.add_argument("--store", help="URL of the store; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            url = arguments.store or f"{scratch}/store"
            seconds, reports = run(size, arguments.rounds, arguments.hospitals, url, Path(scratch))
        median = statistics.median(seconds) * 1e3
        tenth = max(1, min(10, len(seconds) // 2))
        drift = statistics.median(seconds[-tenth:]) / statistics.median(seconds[:tenth])
        peak = max(peak for _, peak, _ in reports)
        allowed = 3 * 4 * size + 150 * MB
        label = f"{size:,} parameters"
        rows += [
            row(f"{label}: round, median", median, "ms", TARGETS_MS.get(size)),
            row(f"{label}: round, worst", max(seconds) * 1e3, "ms", None),
            row(f"{label}: last rounds / first rounds", drift, "x", 1.2),
            row(f"{label}: peak memory of a hospital", peak / MB, "MB", allowed / MB),
            row(f"{label}: of which before round 1", max(base for base, _, _ in reports) / MB, "MB", None),
            row(
                f"{label}: CPU per round and hospital",
                1e3 * max(cpu for _, _, cpu in reports) / len(seconds),
                "ms",
                None,
            ),
        ]
    rows.append(row("waiting, first 3 s: share of a core", idle_share(3, 0), "%", None))
    rows.append(row("waiting, after 3 s: share of a core", idle_share(13, 3), "%", None))
    for item in rows:
        target = "" if item["target"] is None else f"target {item['target']:g}: {'met' if item['met'] else 'NOT MET'}"
        print(f"{item['name']:<52} {item['value']:>10.2f} {item['unit']:<3} {target}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def row(name: str, value: float, unit: str, target: float | None) -> dict[str, object]:
    """One line of the table; smaller is better."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "target": target,
        "met": None if target is None else value <= target,
    }


if __name__ == "__main__":
    main()
