"""What the secure sum costs: both waves at a hospital, opening the sum at the aggregator, bytes and memory.

Beside it, in the same run: Flower's own SecAgg+ functions (in an environment of its own that this script makes), and
the limits of the machine, which are the rate of the AES-256-CTR stream alone and the memory's bandwidth. Times are the
least of some repeats. Every sum that is opened is compared with the true one. Rounds are real: all vectors are masked,
signed, added, and unmasked. Prints a table; `--json FILE` writes [{name, value, unit, target, met}].

    python scripts/bench_secagg.py [--hospitals 4 10 30 100] [--sizes 100000 1000000 25000000] [--dropout 0 0.1 0.3]
        [--most 1e9] [--flower DIR | --no-flower] [--json FILE]

`--most` skips rounds in which hospitals x parameters exceed it (100 x 25 M takes minutes); wave one is measured still.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from datasites.secagg import masks, ring
from datasites.secagg.aggregator import Aggregator
from datasites.secagg.aggregator_state import AggregatorState
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.member import Member
from datasites.secagg.messages import ShareBundle
from datasites.secagg.state import MemberState
from datasites.study.identity import Identity
from datasites.study.manifest import RoundManifest, VectorTerm
from datasites.study.roster import Roster, RosterEntry
from datasites.study.rounds import safe_scale

FLOWER = "flwr==1.41.0"
TODAY = datetime.date(2026, 1, 5)
AGGREGATOR = "researcher@bench.example"
REPEATS = 5


class Table:
    """Results as they come: printed, and kept for `--json`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, name: str, value: float, unit: str, target: float | None = None, at_most: bool = True) -> None:
        """Record one figure and, with a target, whether it was met."""
        met = None if target is None else bool(value <= target if at_most else value >= target)
        self.rows.append({"name": name, "value": round(value, 4), "unit": unit, "target": target, "met": met})
        goal = (
            "" if target is None else f"  target {'<=' if at_most else '>='} {target:g}: {'met' if met else 'MISSED'}"
        )
        print(f"{name:<64} {value:12.3f} {unit}{goal}", flush=True)

    def finish(self, file: Path | None) -> None:
        """Say which targets were missed, and write the rows to `file`."""
        if file:
            file.write_text(json.dumps(self.rows, indent=1))
        missed = [row["name"] for row in self.rows if row["met"] is False]
        print("all targets met" if not missed else f"missed: {missed}")


class Cohort:
    """n hospitals and an aggregator after setup, in this process."""

    def __init__(self, n: int, rounds: int, neighbours: str) -> None:
        identities = [Identity.generate(f"site{i:03d}@bench.example") for i in range(n)]
        aggregator = Identity.generate(AGGREGATOR)
        roster = Roster(
            entries=tuple(
                RosterEntry(organisation=one.email, email=one.email, role="hospital", public_key=one.public_key)
                for one in (aggregator, *identities)
            )
        )
        self.context = EpochTerms.from_roster(
            roster,
            study_hash="0" * 64,
            epoch=0,
            aggregator=AGGREGATOR,
            hospitals=[one.email for one in identities],
            colluders=1,
            rounds=(1, rounds),
            expires=TODAY,
            neighbours="ring" if neighbours == "ring" else "everyone",
        )
        self.aggregator = Aggregator(aggregator, self.context)
        self.members = {one.email: Member(one, self.context) for one in identities}
        self.state = self.aggregator.start()
        self.states: dict[str, MemberState] = {}
        for name, member in self.members.items():
            self.states[name], certificate = member.certify()
            self.state = self.aggregator.receive_certificate(self.state, certificate, today=TODAY)
        self.state, enrolment = self.aggregator.enrol(self.state, today=TODAY)
        self.setup_seconds, self.setup_bytes = [], 0
        bundles: list[ShareBundle] = []
        for name, member in self.members.items():
            started = time.perf_counter()
            self.states[name], shares = member.share(self.states[name], enrolment, today=TODAY)
            self.setup_seconds.append(time.perf_counter() - started)
            self.setup_bytes = sum(len(one.to_bytes()) for one in shares.values())
            bundles.extend(shares.values())
        for bundle in bundles:
            name = bundle.recipient
            self.states[name] = self.members[name].accept(self.states[name], bundle)
        for name, member in self.members.items():
            self.states[name], ready = member.ready(self.states[name])
            self.state = self.aggregator.receive_ready(self.state, ready)
        self.round = 0

    def open(self, d: int) -> RoundManifest:
        """Open the next round for one vector of d parameters."""
        self.round += 1
        bound = 1.0
        manifest = RoundManifest(
            study=self.context.study,
            epoch=0,
            round=self.round,
            participants=self.aggregator.available(self.state),
            threshold=self.context.threshold,
            train=True,
            evaluate="no",
            weight_max=1.0,
            model_hash="0" * 64,
            vectors=(VectorTerm(name="update", length=d, bound=bound, scale=safe_scale(bound, len(self.members))),),
        )
        self.state, signed = self.aggregator.open_round(self.state, manifest)
        for name in manifest.participants:
            self.states[name] = self.members[name].open(self.states[name], signed, today=TODAY)
        return manifest


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def best(action: Callable[[], object]) -> float:
    """Least seconds of a call over about two seconds of calls: what other processes take from this one only adds."""
    times = [timed(action) for _ in range(2)]
    while len(times) < REPEATS or sum(times) < 2.0:
        times.append(timed(action))
        if sum(times) > 20.0:
            break
    return min(times)


def stream_alone(size: int, threads: int) -> None:
    """Make `size` bytes of AES-256-CTR keystream and nothing else, in blocks as the masks use, split over threads."""

    def stream() -> None:
        encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        zeros, out = bytes(4 * masks.BLOCK), bytearray(4 * masks.BLOCK)
        for _ in range(size // threads // len(zeros)):
            encryptor.update_into(zeros, out)

    running = [threading.Thread(target=stream) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def bandwidth(size: int = 1 << 26) -> float:
    """Bytes per second through memory for `a += b` on vectors far larger than the cache (two reads, one write)."""
    a, b = np.ones(size, np.uint32), np.ones(size, np.uint32)
    return 12 * size / best(lambda: np.add(a, b, out=a))


def peak_memory(cohort: Cohort, d: int) -> float:
    """Bytes by which `mask` raises the process's peak above its size before the input vector was made.

    Input (4 bytes per parameter) and masked vector (4) are both in it. Measured in a forked child by the kernel.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        measure.begin_peak()
        before = measure.resident()
        name = next(iter(cohort.members))
        update = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
        cohort.members[name].mask(cohort.states[name], {"update": update})
        os.write(write, str(measure.peak() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return float(pipe.read())


def wave_one(table: Table, cohort: Cohort, d: int, limits: list[int], label: str) -> float:
    """Time one hospital's masked vector, from float32 input to signed header; returns the seconds on all threads."""
    manifest = cohort.open(d)
    name = manifest.participants[0]
    member, state = cohort.members[name], cohort.states[name]
    update = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
    goal = 70.0 if label == "n=100 d=1M" else None
    fastest = 0.0
    for threads in limits:
        fastest = best(partial(member.mask, state, {"update": update}, threads=threads))
        table.add(
            f"{label}: wave 1, {threads} thread(s)", 1e3 * fastest, "ms", goal if threads == max(limits) else None
        )
    on_grid = np.random.default_rng(0).integers(-(2**20), 2**20, d)
    whole = best(partial(member.mask, state, {"update": on_grid}, threads=max(limits)))
    table.add(f"{label}: wave 1 of a step on the grid (int64)", 1e3 * whole, "ms", goal)
    masked = member.mask(state, {"update": update})[1]
    sent = len(masked.payload) + len(masked.to_bytes())
    table.add(f"{label}: upload per parameter", sent / d, "bytes", 4.02 if d >= 10**6 else None)
    encode = best(lambda: ring.encode_all(manifest.vectors, {"update": update}))
    table.add(f"{label}: of it encoding", 1e3 * encode, "ms")
    secrets = member._secrets(state, manifest.round)
    opened = member._opened(state)
    epoch = cohort.aggregator._epoch(cohort.state)
    keys = best(lambda: member._masks(epoch, opened, secrets))
    table.add(f"{label}: of it key exchange", 1e3 * keys, "ms")
    chosen = member._masks(epoch, opened, secrets)
    vector = np.zeros(d, np.uint32)
    for threads in limits:
        if d // masks.WORTH_A_THREAD < threads:
            continue
        # Turn about, so that a busy machine slows both alike.
        adding: list[float] = []
        streaming: list[float] = []
        while len(adding) < 3 or sum(adding) < 2.0:
            adding.append(timed(partial(masks.apply, vector, chosen, threads=threads)))
            streaming.append(timed(partial(stream_alone, 4 * d * len(chosen), threads)))
        goal = 70.0 if label == "n=100 d=1M" else None
        table.add(
            f"{label}: masks, share of the AES limit, {threads} thread(s)",
            100 * min(streaming) / min(adding),
            "%",
            goal,
            at_most=False,
        )
    return fastest


def whole_round(table: Table, cohort: Cohort, d: int, dropout: float, label: str) -> None:
    """Run a real round with some hospitals lost after the manifest; check the sum."""
    manifest = cohort.open(d)
    names = list(manifest.participants)
    # Spread over the cohort; never below the threshold.
    lost = min(round(dropout * len(names)), len(names) - cohort.context.threshold)
    gone = {names[index * len(names) // lost] for index in range(lost)}
    alive = [name for name in names if name not in gone]
    rng = np.random.default_rng(1)
    most = ring.limit(manifest.vectors[0])
    truth = np.zeros(d, np.int64)
    adding = []
    for name in alive:
        update = rng.integers(-most, most, d, dtype=np.int32, endpoint=True)
        truth += update
        cohort.states[name], masked = cohort.members[name].mask(cohort.states[name], {"update": update})
        started = time.perf_counter()
        cohort.state = cohort.aggregator.receive(cohort.state, masked)
        adding.append(time.perf_counter() - started)
    cohort.state, survivors = cohort.aggregator.survivors(cohort.state)
    acks = None
    if cohort.context.consistency:
        for name in alive:
            cohort.states[name], ack = cohort.members[name].acknowledge(cohort.states[name], survivors)
            cohort.state = cohort.aggregator.receive_ack(cohort.state, ack)
        cohort.state, acks = cohort.aggregator.acknowledged(cohort.state)
    answering, size = [], 0
    for name in alive:
        started = time.perf_counter()
        cohort.states[name], answer = cohort.members[name].unmask(cohort.states[name], survivors, acks)
        answering.append(time.perf_counter() - started)
        size = len(answer.to_bytes())
        cohort.state = cohort.aggregator.receive_shares(cohort.state, answer)
    where = f"{label} lost={lost}"
    table.add(f"{where}: wave 2 at a hospital", 1e3 * min(answering), "ms")
    table.add(f"{where}: wave 2 answer", size / 1e3, "kB")
    table.add(f"{where}: survivor list", len(survivors.to_bytes()) / 1e3, "kB")
    table.add(f"{where}: aggregator, check and add one vector", 1e3 * min(adding), "ms")
    result, seconds = _open(cohort.aggregator, cohort.state)
    goal = 1.0 if label == "n=100 d=1M" and dropout == 0.3 else None
    table.add(f"{where}: aggregator, open the sum", seconds, "s", goal)
    if not np.array_equal(result, truth):
        raise SystemExit(f"{where}: the opened sum is wrong")


def _open(aggregator: Aggregator, state: AggregatorState) -> tuple[npt.NDArray[np.int32], float]:
    """Return the opened sum and the least seconds of opening it, over some copies of the state."""
    assert state.enrolment is not None
    stored, enrolment, times = state.to_bytes(), state.enrolment.to_bytes(), []
    for _ in range(3 if len(stored) < 10**7 else 1):
        copy = AggregatorState.from_bytes(stored, enrolment)
        started = time.perf_counter()
        result = aggregator.result(copy)
        times.append(time.perf_counter() - started)
    return result.integers["update"], min(times)


def flower(folder: Path, cases: list[tuple[int, int]]) -> dict[tuple[int, int], dict[str, float]]:
    """Flower's times for some (n, d), in seconds; makes its environment in `folder` if it isn't there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {FLOWER} in {folder}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", FLOWER], check=True)
    script = Path(__file__).with_name("bench_secagg_flower.py")
    done = subprocess.run(
        [python, script], input=json.dumps(cases), capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    if done.returncode:
        raise SystemExit(f"Flower's functions failed: {done.stderr[-2000:]}")
    times = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(one["n"], one["d"]): one for one in times}


def name_of(d: int) -> str:
    """Return a short name for a number of parameters."""
    return f"{d // 10**6}M" if d % 10**6 == 0 else f"{d // 1000}K"


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hospitals", type=int, nargs="+", default=[4, 10, 30, 100])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 25_000_000])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--most", type=float, default=1e9)
    parser.add_argument("--neighbours", choices=["everyone", "ring"], default="everyone")
    parser.add_argument("--flower", type=Path, help="environment that has Flower, or where to make it")
    parser.add_argument("--no-flower", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = Table()
    cores = min(4, len(os.sched_getaffinity(0)))
    limits = sorted({1, cores})
    table.add("load average at the start (above 1: times are of a busy machine)", os.getloadavg()[0], "")
    for threads in limits:
        rate = (1 << 29) / best(partial(stream_alone, 1 << 29, threads))
        table.add(f"limit: AES-256-CTR stream, {threads} thread(s)", rate / 1e9, "GB/s")
    table.add("limit: memory, a += b", bandwidth() / 1e9, "GB/s")
    ours: dict[tuple[int, int], float] = {}
    for n in given.hospitals:
        cohort = Cohort(n, len(given.sizes) * (1 + len(given.dropout)), given.neighbours)
        table.add(f"n={n}: setup, make and encrypt all shares", 1e3 * min(cohort.setup_seconds), "ms")
        table.add(f"n={n}: setup, bytes sent to peers, per round", cohort.setup_bytes / cohort.context.last_round, "B")
        for d in given.sizes:
            label = f"n={n} d={name_of(d)}"
            ours[n, d] = wave_one(table, cohort, d, limits, label)
            if d >= 10**6 and Path("/proc/self/clear_refs").exists():
                goal = (3 * 4 * d + 50e6) / 1e6
                table.add(f"{label}: peak memory of wave 1, input included", peak_memory(cohort, d) / 1e6, "MB", goal)
            for dropout in given.dropout:
                if n * d <= given.most and (dropout == 0 or round(dropout * n) > 0):
                    whole_round(table, cohort, d, dropout, label)
    if not given.no_flower:
        # Flower's masks take 8 bytes a parameter and all memory at once; its large cases only where they fit.
        cases = [(n, d) for n, d in ours if n * d <= 250_000_000]
        with tempfile.TemporaryDirectory() as scratch:
            theirs = flower(given.flower or Path(scratch) / "env", cases)
        for (n, d), one in theirs.items():
            label = f"n={n} d={name_of(d)}"
            table.add(f"{label}: Flower, client wave", 1e3 * one["client"], "ms")
            goal = 8.0 if label == "n=100 d=1M" else None
            table.add(
                f"{label}: wave 1, times faster than Flower", one["client"] / ours[n, d], "x", goal, at_most=False
            )
            lost = min(round(0.3 * n), n - (2 * n // 3 + 1))
            count = (n - lost) + lost * (n - lost)
            table.add(f"{label}: Flower, {count} masks off at the server (one mask x count)", count * one["mask"], "s")
    table.finish(given.json)
    sys.exit(0)


if __name__ == "__main__":
    main()
