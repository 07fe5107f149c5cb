"""A process in the sandbox that speaks the protocol and lies: each lie is refused, and nothing allotted by it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measure import begin_peak, peak

from datasites.enclave.confine import WorkerLimits
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.worker_client import Worker, WorkerCrashed, WorkerError, WorkerRefused
from tests.enclave.workers import EVALUATION, PLAN, TRAINING, study

MIB = 1024**2
#: What the datasite's process may grow by while it reads any one reply, at its peak.
MOST_GROWTH = 24 * MIB

#: Answers each request with the frames that were prepared for its kind: header, bytes of body, body length said.
LIAR = """
import json, os, struct, sys
answers = json.loads(sys.argv[-1])
def read(count):
    received = b""
    while len(received) < count:
        received += os.read(0, min(1 << 20, count - len(received))) or os._exit(0)
    return received
while True:
    _, header, body = struct.unpack("<4sIQ", read(16))
    kind = json.loads(read(header))["message"]["kind"]
    while body:
        body -= len(read(min(body, 1 << 20)))
    text, size, said = answers[kind]
    if text.startswith("repeat "):
        _, count, part = text.split(" ", 2)
        text = "[" + part * int(count) + "[]]"
    frame = struct.pack("<4sIQ", b"DSW1", len(text), said) + text.encode()
    with open(1, "wb", closefd=False) as pipe:
        pipe.write(frame)
        for _ in range(size >> 20):
            pipe.write(bytes(1 << 20))
        pipe.write(bytes(size & 0xFFFFF))
"""


def reply(
    kind: str, arrays: Sequence[dict[str, Any]] = (), size: int = 0, said: int | None = None, **fields: Any
) -> tuple[str, int, int]:
    """The frame of one reply: its header, the bytes of its body, and how many it says these are."""
    header = json.dumps({"message": {"kind": kind, **fields}, "arrays": list(arrays)})
    return header, size, size if said is None else said


def array(name: str, kind: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "type": kind, "shape": list(shape)}


def tensors(*shapes: Sequence[int]) -> tuple[str, int, int]:
    parameters = [{"name": f"w{place}", "shape": list(shape)} for place, shape in enumerate(shapes)]
    return reply("description", parameters=parameters, findings=[], warnings=[])


LARGE = array("x", "int64", [10 * MIB])
HONEST = tensors((4, 7), (1,))
D = 29


class Lying(Sandbox):
    """A sandbox whose worker answers as it was told to."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(SandboxConfig(limits=WorkerLimits(memory=1 << 30)))
        self._answers = answers

    def command(self, arguments: Sequence[str], shown: Path | None = None) -> list[str]:
        if "datasites.enclave.worker_process" in arguments:
            arguments = ["-c", LIAR, json.dumps(self._answers)]
        return super().command(arguments, shown)


def grown_by(act: Callable[[], object]) -> tuple[int, Exception | None]:
    """By how many bytes this process's memory grew at its peak, and what `act` raised."""
    gc.collect()
    begin_peak()
    before, raised = peak(), None
    try:
        act()
    except Exception as error:
        raised = error
    return peak() - before, raised


def start(folder: Path, answers: dict[str, Any], **options: Any) -> Worker:
    return Worker.start(Lying(answers), (folder / "model.py").read_text(), n_features=7, **options)


def initialise(worker: Worker) -> object:
    return worker.initial_parameters()


def train(worker: Worker) -> object:
    return worker.train(
        np.zeros(D, np.float32), plan=PLAN, training=TRAINING, divisor=60.0, round=1, key=os.urandom(32)
    )


def evaluate(worker: Worker) -> object:
    return worker.evaluate(np.zeros(D, np.float32), plan=EVALUATION, kind="final", key=os.urandom(32))


def rehearse(worker: Worker) -> object:
    return worker.rehearse(plan=PLAN, training=TRAINING, divisor=60.0)


REHEARSED = {"rounds": 1, "steps": 2, "seconds_per_round": 0.1, "peak_memory_bytes": 1, "findings": []}
GOOD_UPDATE = reply("trained", [array("update", "float32", [D])], 4 * D, steps=2)

#: The truth, told by the same process: what is refused below is refused for its lie.
HONEST_ANSWERS: list[tuple[str, Any, Callable[[Worker], object]]] = [
    ("initialise", reply("done", [array("parameters", "float32", [D])], 4 * D), initialise),
    ("train", GOOD_UPDATE, train),
    ("evaluate", reply("evaluated", [array("counts", "float64", [4, 2])], 64), evaluate),
    ("rehearse", reply("rehearsed", **REHEARSED), rehearse),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return study(tmp_path / "study")


@pytest.mark.parametrize(("kind", "answer", "ask"), HONEST_ANSWERS, ids=[kind for kind, _, _ in HONEST_ANSWERS])
def test_the_truth_is_believed(folder: Path, kind: str, answer: Any, ask: Callable[[Worker], object]) -> None:
    with start(folder, {"load_code": HONEST, kind: answer}, parameters=D) as worker:
        assert worker.description.count == D
        ask(worker)


@pytest.mark.parametrize(
    ("kind", "answer", "ask"),
    [
        ("initialise", reply("done", [array("parameters", "float32", [10**8])], 400 * MIB), initialise),
        ("initialise", reply("done", [array("parameters", "float32", [D])], 4 * D, said=2**63), initialise),
        ("initialise", reply("done", [array("parameters", "float32", [2**62, 2**62, 0])]), initialise),
        ("initialise", reply("done", [array("parameters", "float32", [0])]), initialise),
        ("initialise", reply("done"), initialise),
        ("initialise", ("repeat 1300000 [],", 0, 0), initialise),
        ("train", reply("trained", [array("update", "float32", [2 * D])], 8 * D, steps=2), train),
        ("train", reply("trained", [array("update", "float32", [D, 1])], 4 * D, steps=2), train),
        ("train", reply("trained", [array("other", "float32", [D])], 4 * D, steps=2), train),
        ("train", reply("trained", [array("update", "float32", [D])] * 2, 8 * D, steps=2), train),
        ("train", reply("trained", [array("update", "float32", [D])], 4 * D, steps=3), train),
        ("train", reply("trained", [array("update", "float32", [D])], 4 * D, steps=10**400), train),
        ("train", reply("done", [array("update", "float32", [D])], 4 * D), train),
        ("evaluate", reply("evaluated", [array("counts", "float64", [2, 4])], 64), evaluate),
        ("evaluate", reply("evaluated", [array("counts", "int64", [4, 2])], 64), evaluate),
        ("rehearse", reply("rehearsed", **{**REHEARSED, "rounds": 10**6}), rehearse),
        ("rehearse", reply("rehearsed", **{**REHEARSED, "steps": 10**6}), rehearse),
        ("rehearse", reply("rehearsed", **{**REHEARSED, "seconds_per_round": 1e300}), rehearse),
        ("rehearse", reply("rehearsed", **{**REHEARSED, "peak_memory_bytes": 2**60}), rehearse),
        ("rehearse", ("repeat 340000 [],", 0, 0), rehearse),
    ],
)
def test_a_lie_about_sizes_is_refused_before_anything_is_allotted(
    folder: Path, kind: str, answer: Any, ask: Callable[[Worker], object]
) -> None:
    with start(folder, {"load_code": HONEST, kind: answer}, parameters=D) as worker:
        grown, raised = grown_by(lambda: ask(worker))
        assert isinstance(raised, WorkerError)
        assert raised.rule in ("protocol", "steps"), raised
        assert not worker.alive
    assert grown < MOST_GROWTH


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (tensors((4, 7), (2,)), WorkerRefused, "30 parameters and was approved with 29"),
        (tensors((10**8,)), WorkerRefused, "approved with 29"),
        (tensors((2**62,)), WorkerCrashed, "not a message"),
        (tensors((2**62, 2**62, 0)), WorkerCrashed, "not a message"),
        (("repeat 1300000 [],", 0, 0), WorkerCrashed, "above"),
        (reply("description", [LARGE], 80 * MIB, parameters=[], findings=[]), WorkerCrashed, "above"),
        (reply("description", parameters=[], findings=[], count=10**9), WorkerCrashed, "count"),
    ],
)  # fmt: skip
def test_a_model_of_another_size_than_approved_is_refused(
    folder: Path, answer: Any, kind: type[WorkerError], words: str
) -> None:
    grown, raised = grown_by(lambda: start(folder, {"load_code": answer}, parameters=D))
    assert isinstance(raised, kind)
    assert words in str(raised)
    assert grown < MOST_GROWTH


def test_before_approval_the_hospitals_own_limit_holds(folder: Path) -> None:
    grown, raised = grown_by(lambda: start(folder, {"load_code": tensors((10**8,))}))
    assert isinstance(raised, WorkerRefused)
    assert "100000000 parameters; workers here take 32000000 at most" in str(raised)
    assert raised.rule == "parameters"
    assert grown < MOST_GROWTH
