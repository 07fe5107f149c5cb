"""Tries in earnest to get out of the sandbox, and reports which attempts were blocked: for `datasites doctor`.

`escape_check` lays out bait on the host (a file in a temporary folder, an environment variable, a listening port, an
abstract socket, this very process), starts `attempts` inside the sandbox, and reads what each of them came to.

An attempt that could not be made is reported neither as an escape nor as blocked (`held`): a sandbox is sound only if
every attempt was blocked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from datasites.enclave.attempts import AFTER, BEFORE, BESIDE, OF_A_FOLDER, Attempt, Targets
from datasites.enclave.confine import WorkerLimits
from datasites.enclave.processes import Process, readable
from datasites.enclave.sandbox import Sandbox
from datasites.enclave.template import Template

_SECONDS = 120


def escape_check(source: Sandbox | Template) -> list[Attempt]:
    """Try every escape where `source` puts a worker, about a second; it is sound when every attempt was held.

    Where that is beside other workers, another one has laid out bait there, too. Raises as `Template.start` does.
    """
    token = secrets.token_hex(16)
    if isinstance(source, Template):
        source.start()
    sandbox, wanted = source.sandbox if isinstance(source, Template) else source, BEFORE | AFTER
    with tempfile.TemporaryDirectory(prefix="datasites-escape-") as folder, _ports() as (port, name, reached):
        bait = Path(folder) / "bait.txt"
        bait.write_text(token)
        shown = Path(folder) / "shown"
        shown.mkdir()
        (shown / "bait.txt").write_text(token)
        targets: Targets = {
            "token": token, "bait": str(bait), "home": str(Path.home()), "folder": folder, "port": port,
            "socket": name, "pid": os.getpid(), "shown": str(sandbox.seen_path(shown)),
        }  # fmt: skip
        try:
            if isinstance(source, Template) and not source.fork_refusal:
                wanted = {name: one for name, one in (wanted | BESIDE).items() if name != OF_A_FOLDER}
                lines, ended = _beside(source, targets)
            else:
                lines, ended = _in_a_sandbox(sandbox, shown, targets, token)
            results = [Attempt(**json.loads(line)) for line in lines]
        except (OSError, subprocess.TimeoutExpired, ValueError, TypeError) as error:
            results, ended = [], str(error)
        left = sorted(path.name for path in Path(folder).iterdir())
        new_file, met = left != ["bait.txt", "shown"], reached()
    known = {attempt.name for attempt in results}
    missing = [name for name in wanted if name not in known]
    results += [Attempt(name, "not tried", ended or "no answer") for name in missing]
    for name, seen, detail in (
        ("the host saw no new file", new_file, f"{len(left)} file(s)"),
        ("the host saw no connection", met, "listened on TCP and an abstract socket"),
    ):
        results.append(Attempt(name, "got out" if seen else "not tried" if not known else "held", detail))
    return results


def _limits_for(sandbox: Sandbox) -> WorkerLimits:
    return sandbox.limits.model_copy(update={"memory": 1 << 30})


def _in_a_sandbox(sandbox: Sandbox, shown: Path, targets: Targets, token: str) -> tuple[list[bytes], str]:
    """Run attempts in a sandbox of their own; return what they report, a line each, and why it ended, or ""."""
    limits = json.dumps(_limits_for(sandbox).model_dump(mode="json"))
    command = sandbox.command(["-m", "datasites.enclave.attempts", limits, json.dumps(targets)], shown)
    done = subprocess.run(
        command, env={"DATASITES_BAIT": token}, capture_output=True, timeout=_SECONDS, check=False
    )  # fmt: skip
    return done.stdout.splitlines(), "" if done.returncode == 0 else done.stderr.decode(errors="replace")[-2000:]


def _beside(template: Template, targets: Targets) -> tuple[list[bytes], str]:
    """Run the attempts in a worker beside another one that has laid out bait; return as `_in_a_sandbox` does."""
    with contextlib.ExitStack() as ending:
        sibling, attacker = template.process("bait"), template.process("escape")
        for process in (sibling, attacker):
            ending.callback(process.wait)
            ending.callback(process.end)
        baits = targets | {"beside": secrets.token_hex(8)}
        os.write(sibling.requests, json.dumps(baits).encode() + b"\n")
        laid = _line(sibling, time.monotonic() + _SECONDS)
        os.write(attacker.requests, json.dumps({**baits, "laid": json.loads(laid)}).encode() + b"\n")
        lines, deadline = [], time.monotonic() + _SECONDS
        while line := _line(attacker, deadline):
            lines.append(line)
        attacker.wait(_SECONDS)
        return lines, "" if attacker.code == 0 else str(attacker.log)[-2000:]


def _line(process: Process, deadline: float) -> bytes:
    """Return one line that it says, or what it said of one before it ended."""
    line = b""
    while not line.endswith(b"\n"):
        if not readable(process.replies, max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"no answer within {_SECONDS} s")
        if not (read := os.read(process.replies, 1)):
            break
        line += read
    return line


@contextlib.contextmanager
def _ports() -> Iterator[tuple[int, str, Callable[[], bool]]]:
    """Open a loopback TCP port and an abstract Unix socket of the host; yield both, and whether anyone connected."""
    name = f"datasites-{secrets.token_hex(8)}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.bind(("127.0.0.1", 0))
        local.bind("\0" + name)
        for listener in (tcp, local):
            listener.listen()
            listener.setblocking(False)

        def reached() -> bool:
            for listener in (tcp, local):
                with contextlib.suppress(BlockingIOError):
                    listener.accept()[0].close()
                    return True
            return False

        yield tcp.getsockname()[1], name, reached
