"""Workers that are forked from one template: apart from each other and from it, begun with nothing, ended with it."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from datasites.enclave import attempts as attempts_made
from datasites.enclave import escape, processes, template
from datasites.enclave.processes import Process, Sandboxed, readable
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.enclave.template import Forked, Template, TemplateEnded
from datasites.enclave.worker_client import WorkerOutOfMemory
from tests.enclave.processes import CLEARING, gone
from tests.enclave.walls import failed, showing
from tests.enclave.workers import LIMITS, SOURCE, rows, start, study, train
from tests.other_user import run_as_other_user
from tests.polling import until
from tests.templates import shared

pytestmark = pytest.mark.waits

CONFIG = SandboxConfig(limits=LIMITS)


class Changed(Template):
    """A template whose program is run by other code, which gets the same arguments."""

    def __init__(self, code: str) -> None:
        super().__init__(CONFIG)
        outer = self

        class Coded(Sandbox):
            def command(
                self, arguments: Sequence[str], shown: Path | None = None, *, template: bool = False
            ) -> list[str]:
                if template:
                    arguments = ["-c", code, *arguments[2:]]
                return super().command(arguments, shown, template=template)

        outer._sandbox = Coded(CONFIG)


@pytest.fixture(autouse=True)
def forks() -> None:
    """Some machines let nobody make namespaces within a sandbox; workers start alone there, as one test shows."""
    source = shared(CONFIG)
    source.start()
    if source.fork_refusal:
        pytest.skip(f"no worker can be forked here: {source.fork_refusal}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return study(tmp_path / "study")


def test_nothing_gets_out_of_a_worker_to_the_host_or_to_another() -> None:
    attempts = escape.escape_check(shared(CONFIG))
    assert failed(attempts) == set()
    names = {attempt.name for attempt in attempts}
    wanted = {*attempts_made.BEFORE, *attempts_made.BESIDE, *attempts_made.AFTER, "the host saw no connection"}
    assert wanted - names == {attempts_made.OF_A_FOLDER}


EVERYTHING = """
import os
from datasites.enclave import escape
from datasites.enclave.template import Template
source = Template()
attempts = escape.escape_check(source)
assert os.geteuid() != 0 and not source.fork_refusal and len(attempts) >= 32
print([attempt for attempt in attempts if not attempt.held])
source.close()
"""


def test_nothing_gets_out_of_a_worker_of_another_user() -> None:
    done = run_as_other_user([sys.executable, "-c", EVERYTHING])
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


#: One wall taken down each, in the keeper or in the worker, before it is put up. Not here: walls behind which another
#: one stands that holds all attempts (covers of /dev/pts and /tmp, the limit of namespaces: ids that are not mapped).
WEAKER = {
    "ipc": ("forking._NEWIPC = 0", {"meet another by a name"}),
    "network": ("forking._NEWNET = 0", {"meet another by a name"}),
    "processes": ("forking._NEWPID = 0", {"signal another worker"}),
    "proc": ("forking._COVERED = [one for one in forking._COVERED if one[0] != '/proc']", {"see other processes"}),
    "descriptors": ("forking._cover = lambda cover=forking._cover: (forking.os.dup(1), cover())",
                    {"hold what others had open"}),
    "capabilities": ("forking._drop_capabilities = lambda: None", {"hold privileges", "mount a file system"}),
}  # fmt: skip
WEAKENING = f"""
import sys
from functools import partial
from datasites.enclave import attempts, forking, worker_process
keep, changes = forking._keep, { ({name: code for name, (code, _) in WEAKER.items()})!r}
def weakened(work, *others):
    exec(changes.get(getattr(work, "keywords", {{}}).get("weaker", ""), ""))
    keep(work, *others)
def weaker_escape(limits, *others, weaker): attempts.attempt_apart(limits, *others)
def weaker_bait(*others, weaker): attempts.bait(*others)
class Works(dict):
    def __missing__(self, word):
        name, weaker = word.split(":")
        kinds = {{"escape": partial(weaker_escape, self.limits), "bait": weaker_bait}}
        return partial(kinds[name], weaker=weaker)
def serve(control, works):
    more = Works(works)
    more.limits = worker_process.WorkerLimits.model_validate_json(sys.argv[1])
    forking_serve(control, more)
forking._keep, forking_serve, forking.serve = weakened, forking.serve, serve
worker_process.main()
"""


@pytest.fixture(scope="module")
def weakening() -> Iterator[Template]:
    """A template whose forks lack the wall that the word names."""
    source = Changed(WEAKENING)
    yield source
    source.close()


@pytest.mark.slow
@pytest.mark.parametrize("wall", WEAKER)
def test_a_wall_between_workers_taken_down_is_noticed(
    weakening: Template, wall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = weakening.process
    monkeypatch.setattr(weakening, "process", lambda run: process(f"{run}:{wall}"))
    got_out = {one.name for one in escape.escape_check(weakening) if one.outcome == "got out"}
    assert got_out >= WEAKER[wall][1]


def descriptors(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed as it was looked at
            found.append(os.readlink(path))
    return sorted(found)


def test_a_worker_begins_with_its_own_pipe_and_nothing_else_open() -> None:
    with contextlib.ExitStack() as ending:
        for _ in range(3):
            process = shared(CONFIG).process()
            ending.callback(process.end)
            until(lambda process=process: len(descriptors(process.pid)) == 5)
            assert [name.partition(":")[0] for name in descriptors(process.pid)] == ["/dev/null", *["pipe"] * 4]
            ours = {os.readlink(f"/proc/self/fd/{end}") for end in (process.requests, process.replies)}
            assert ours < set(descriptors(process.pid))


def holds(pid: int, words: bytes) -> bool:
    """Whether a process has these words in memory that it may write."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            where, how, *_ = line.split()
            if how.startswith("rw"):
                first, last = (int(end, 16) for end in where.split("-"))
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(first)
                    if words in memory.read(last - first):
                        return True
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of a sandboxed worker")
def test_nothing_of_one_case_is_in_the_memory_of_the_next_one_or_of_the_template(folder: Path) -> None:
    token = os.urandom(8).hex()
    study(folder, f"{SOURCE}\n# {token}\n")
    source = shared(CONFIG)
    with start(folder, data={"training": rows()}) as first:
        train(first)
        second = source.process()
        try:
            until(lambda: len(descriptors(second.pid)) == 5)
            assert holds(first.pid, token.encode())
            assert not holds(second.pid, token.encode())
            assert not holds(python_of(source), token.encode())
        finally:
            second.end()


def said(code: str) -> str:
    """What a template that is changed so says of why it forks nothing."""
    source = Changed(code)
    try:
        source.start()
        return source.fork_refusal
    finally:
        source.close()


CHANGED_IN_SERVE = """
from datasites.enclave import forking, worker_process
serve = forking.serve
def changed(*arguments):
    {}
    serve(*arguments)
forking.serve = changed
worker_process.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "2 threads"),
        ("import mmap; globals()['kept'] = mmap.mmap(-1, 4096)", "memory that its workers would share"),
    ],
    ids=["thread", "memory"],
)
def test_what_could_not_be_forked_safely_is_not_forked(change: str, words: str) -> None:
    assert words in said(CHANGED_IN_SERVE.format(change))


@pytest.mark.slow
def test_where_none_can_be_forked_each_gets_a_sandbox_of_its_own(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the kernel lets nobody make namespaces within a sandbox."""

    class Strict(Sandbox):
        def command(self, arguments: Sequence[str], shown: Path | None = None, *, template: bool = False) -> list[str]:
            command = super().command(arguments, shown, template=template)
            place = command.index("--unshare-user") + 1
            return [*command[:place], "--disable-userns", *command[place:]] if template else command

    source = Template(CONFIG)
    source._sandbox = Strict(CONFIG)
    with caplog.at_level(logging.WARNING):
        source.start()
    assert "unshare was refused" in source.fork_refusal
    assert source.fork_refusal in caplog.text
    assert source._running is None
    with start(folder, source, data={"training": rows()}) as worker:
        assert isinstance(worker._process, Sandboxed)
        assert train(worker).steps == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [(SandboxConfig(mode="off"), "off"), (SandboxConfig(devices=("/dev/null",)), "devices")],
    ids=["off", "devices"],
)
def test_why_workers_start_alone_is_said(config: SandboxConfig, words: str) -> None:
    assert words in Template(config).fork_refusal


def test_without_a_filter_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "has_filter", lambda: False)
    assert "filter" in Template().fork_refusal


@pytest.mark.slow
def test_workers_end_with_their_template_and_another_follows(folder: Path) -> None:
    source = Template(CONFIG)
    try:
        with start(folder, source, data={"training": rows()}) as worker:
            assert isinstance(worker._process, Forked)
            parameters = worker.initial_parameters()
            assert source._running is not None
            assert source._running._process is not None
            os.killpg(source._running._process.pid, signal.SIGKILL)
            with pytest.raises(WorkerOutOfMemory, match="not by the datasite"):
                train(worker, parameters)
            assert gone([worker.pid])
        with start(folder, source, data={"training": rows()}) as worker:
            assert train(worker, parameters).steps == 2
            source.close()
            assert gone([worker.pid])
        assert not source.ready
    finally:
        source.close()


def test_workers_with_several_threads_are_forked_too(folder: Path) -> None:
    """The template has one, and each worker starts its own."""
    source = Template(SandboxConfig(limits=LIMITS, threads=2))
    try:
        with start(folder, source, data={"training": rows()}) as worker:
            assert isinstance(worker._process, Forked)
            assert train(worker).steps == 2
        assert not source.fork_refusal
    finally:
        source.close()


LATE = """
import sys
from datasites.enclave import worker_process
def late(limits, requests, replies, size):
    sys.path.append(FOLDER)
    import found_late
worker_process.work = late
worker_process.main()
"""


@pytest.fixture
def below_tmp() -> Iterator[str]:
    """A folder where a sandbox has its own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def test_what_a_worker_loads_late_is_found_where_python_lies_below_tmp(below_tmp: str) -> None:
    (Path(below_tmp) / "found_late.py").touch()
    source = Changed(LATE.replace("FOLDER", repr(below_tmp)))
    command = source.sandbox.command
    source.sandbox.command = lambda *a, **o: showing(below_tmp)(command(*a, **o))  # type: ignore[method-assign]
    try:
        process = source.process()
        process.wait(30)
        assert process.code == 0, str(process.log)
    finally:
        source.close()


WORKING = """
import sys
import datasites.enclave.opacus_parts
import numpy as np
from datasites.enclave import worker_process, protocol
from datasites.enclave.confine import WorkerLimits
from datasites.privacy.plan import EvaluationPlan, PrivacyPlan
from datasites.study.manifest import LocalTraining
plan = PrivacyPlan(clip=1.0, noise_multiplier=1.5, sampling_rate=0.3, rounds=5, steps_per_round=2)
training, source = LocalTraining(steps=2, learning_rate=0.5), np.random.default_rng(1)
if "cold" not in sys.argv: worker_process.warm_up(WorkerLimits())
before = set(sys.modules)
enclave = worker_process.Enclave(WorkerLimits(), ())
enclave.answer(protocol.LoadCode(source=sys.argv[1], n_features=5), {})
for name, count in (("mock", 200), ("training", 200), ("held_out", 0)):
    rows = {"x": source.normal(size=(count, 5)).astype(np.float32), "y": np.ones(count, np.float32)}
    enclave.answer(protocol.LoadData(partition=name), rows)
_, start = enclave.answer(protocol.Initialise(), {})
enclave.answer(protocol.Rehearse(plan=plan, training=training, divisor=60.0), {})
enclave.answer(protocol.Train(round=1, plan=plan, training=training, divisor=60.0, key="0f" * 32), start)
counts = EvaluationPlan(edges=(0.0, 0.25, 0.5, 0.75, 1.0), final_multiplier=2.0)
enclave.answer(protocol.Evaluate(plan=counts, evaluation="final", key="0f" * 32), start)
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
def test_nothing_is_loaded_while_rows_are_at_work() -> None:
    """When it is, and whether, could follow from a row."""
    command = [sys.executable, "-c", WORKING, SOURCE]
    for how, loaded in (((), False), (("cold",), True)):
        done = subprocess.run([*command, *how], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert (done.stdout != "[]\n") == loaded, done.stdout


HOSTILE = f"""
import sys
from datasites.enclave import worker_process
CLEARING = {CLEARING!r}
def hostile(limits, requests, replies, size):
    exec(CLEARING.replace("confine(WorkerLimits())", "confine(WorkerLimits(), 1 << 30)"), {{}})
worker_process.work = hostile
worker_process.main()
"""


@pytest.fixture
def hostile() -> Iterator[Process]:
    source = Changed(HOSTILE)
    process = source.process()
    until(lambda: "cleared" in str(process.log))
    yield process
    source.close()


def test_a_hostile_fork_is_stopped_and_ended(hostile: Process) -> None:
    """It ignores all signals, may not clear the one by which it ends with its keeper, and never ends by itself."""
    assert "cleared: -1" in str(hostile.log)
    assert hostile.stop()
    until(lambda: Path(f"/proc/{hostile.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    hostile.resume()
    until(lambda: Path(f"/proc/{hostile.pid}/stat").read_text().rpartition(")")[2].split()[0] == "R")
    hostile.end()
    hostile.wait()
    assert hostile.code == -signal.SIGKILL
    assert hostile.is_over
    hostile.end()
    hostile.resume()


def test_a_worker_ends_with_its_keeper(hostile: Process) -> None:
    keeper = int(
        next(
            line.split()[1]
            for line in Path(f"/proc/{hostile.pid}/status").read_text().splitlines()
            if line.startswith("PPid")
        )
    )
    os.kill(keeper, signal.SIGKILL)
    assert gone([hostile.pid])
    hostile.wait()
    assert hostile.code == -signal.SIGKILL


def test_the_pipe_of_a_worker_that_has_ended_stays_its_own() -> None:
    """While it is held: whoever reads from it just then hears of the end, and reads nobody else's file."""
    process = shared(CONFIG).process()
    process.end()
    process.wait()
    assert os.read(process.replies, 1) == b""
    with pytest.raises(BrokenPipeError):
        os.write(process.requests, b"x")


def test_what_a_worker_leaves_open_is_closed_with_it(folder: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        start(folder).close()
    assert set(os.listdir("/proc/self/fd")) <= before


DRAWING = """
import random, ssl
import numpy, torch
from datasites.enclave import worker_process
def drawn(*_):
    print(random.random(), numpy.random.random(), torch.rand(1).item(), ssl.RAND_bytes(8).hex(), flush=True)
worker_process.work = drawn
worker_process.main()
"""


@pytest.mark.slow
def test_no_two_workers_draw_the_same_but_for_what_models_are_built_with() -> None:
    """Each hospital builds a model with the same numbers, as a process that was started anew does."""
    source, drawn = Changed(DRAWING), []
    for _ in range(2):
        process = source.process()
        process.wait()
        drawn.append(str(process.log).split()[:4])
    source.close()
    assert [len(one) for one in drawn] == [4, 4]
    assert [first == second for first, second in zip(*drawn, strict=True)] == [False, False, True, False]


def full(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_nobody_can_follow_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the datasite has no descriptor left: once it is let go of, nobody could end it."""
    monkeypatch.setattr(processes.Log, "follow", full)
    monkeypatch.setattr(template, "_SECONDS_TO_FORK", 1)
    process = shared(CONFIG).process()
    process.wait()
    assert process.is_over
    assert gone([process.pid])


def test_a_worker_is_ended_whatever_number_its_descriptor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 1100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * most:
        pytest.skip("fewer descriptors are allowed here")
    monkeypatch.setattr(template, "_SECONDS_TO_FORK", 1)
    with contextlib.ExitStack() as closing:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * most), hard))
        closing.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(most):
            closing.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        process = shared(CONFIG).process()
        assert not process.is_over
        process.end()
        process.wait()
        assert gone([process.pid])


def test_a_worker_without_a_thread_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = shared(CONFIG)
    source.start()
    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: thread.missing)
        with pytest.raises(AttributeError):
            source.process()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_no_program_that_the_datasite_starts_holds_a_worker() -> None:
    process = shared(CONFIG).process()
    assert isinstance(process, Forked)
    assert not os.get_inheritable(process._held)
    process.end()


def python_of(source: Template) -> int:
    """The template's own process, in its sandbox."""
    assert source._running is not None
    assert source._running._process is not None
    sandbox = source._running._process.pid
    return int(Path(f"/proc/{sandbox}/task/{sandbox}/children").read_text())


def test_a_fork_that_fails_costs_no_other_worker_its_life() -> None:
    source = Template(CONFIG)
    try:
        other, pid = source.process(), python_of(source)
        allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (6, allowed[1]))
        with pytest.raises(TemplateEnded, match="gave no worker"):
            source.process()
        assert not other.is_over
        assert source.ready
        resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
        assert not source.process().is_over
    finally:
        source.close()


def test_a_template_is_gone_as_soon_as_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its process is seen to have ended: whoever tries again at once would be refused by it once more."""
    source = Template(CONFIG)
    source.start()
    running = source._running
    assert running is not None
    os.kill(python_of(source), signal.SIGKILL)
    until(lambda: readable(running._control.fileno(), 0))
    with monkeypatch.context() as patch:
        patch.setattr(template, "is_over", lambda _: False)
        assert not source.ready
    source.close()


def test_nobody_waits_for_the_keeper_of_a_worker_that_has_ended(hostile: Process) -> None:
    status = Path(f"/proc/{hostile.pid}/status").read_text().splitlines()
    (keeper,) = [int(line.split()[1]) for line in status if line.startswith("PPid")]
    os.kill(keeper, signal.SIGSTOP)
    hostile.end()
    until(lambda: readable(hostile._held, 0))  # type: ignore[attr-defined]
    began = time.monotonic()
    assert hostile.is_over
    assert time.monotonic() - began < 5
    os.kill(keeper, signal.SIGCONT)


#: Of others' packages; with their parts.
UNUSED = {
    "IPython", "django", "dp_accounting", "matplotlib", "opacus.accountants", "pandas", "pyarrow", "scipy", "syft",
    "torch._dynamo", "torch._inductor",
}  # fmt: skip
LOADED = """
import json, runpy, sys
runpy.run_module("datasites.enclave.worker_process", run_name="__main__", alter_sys=True)
sys.stderr.write(json.dumps([name for name in sys.modules]))
"""


def test_a_worker_has_not_loaded_what_it_has_no_use_for() -> None:
    command = Sandbox(CONFIG).command(["-c", LOADED, CONFIG.limits.model_dump_json()])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(json.loads(done.stderr))
    assert "torch" in loaded
    assert [name for name in sorted(loaded) if any(name == one or name.startswith(f"{one}.") for one in UNUSED)] == []
