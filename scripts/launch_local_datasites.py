#!/usr/bin/env python3
"""Starts one datasite process per hospital of a consortium file, on this machine.

Starts each as soon as its home is there, says where it is once it is ready, streams their logs with prefixes, and stops
all on Ctrl-C, SIGTERM or the death of one (unless --keep-going). The state folder is made on first use and used again
after that.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from consortium import LocalConsortium

from datasites.study.addresses import shown
from datasites.study.errors import DatasitesError, InputError

READY_SECONDS = 120.0


class Stopped(InputError):
    """Somebody has stopped the launcher before all datasites were ready."""


class Launcher:
    """The processes of a local consortium."""

    def __init__(self, consortium: LocalConsortium, keep_going: bool) -> None:
        self.consortium, self.keep_going = consortium, keep_going
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.stop = threading.Event()
        self._launching = True

    def run(self, homes: Iterable[str]) -> int:
        """Start those of `homes`, wait for a reason to stop, stop all; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stopped())
        try:
            announcing = [self._start(key) for key in homes]
            for announced in announcing:
                announced.result()
            self._launching = False
            print(f"researcher's home: {self.consortium.researcher_home}")
            first = self.consortium.home(self.consortium.settings.hospitals[0].key)
            print(f"review with: datasites review list --home {first}")
            print("all datasites are ready", flush=True)
            return self._watch()
        finally:
            self._launching = False
            self._stop_all()

    def _stopped(self) -> None:
        self.stop.set()
        if self._launching:
            self._launching = False
            raise Stopped("stopped before all datasites were ready")

    def _start(self, key: str) -> Future[None]:
        """Start one; the result is there when it is ready and announced."""
        home = self.consortium.home(key)
        (home / "run" / "ready.json").unlink(missing_ok=True)
        environment = {**os.environ, "DATASITES_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", "1")
        process = subprocess.Popen(
            [sys.executable, "-m", "datasites.cli", "serve", "--home", str(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            # Its own group: Ctrl-C reaches this launcher only, which then stops the datasites one way for all reasons.
            start_new_session=True,
        )
        self.processes[key] = process
        in_a_thread(lambda: self._stream(key, process))
        return in_a_thread(lambda: self._announce(key, process))

    def _stream(self, key: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"[{key}] {line}", end="", flush=True)

    def _announce(self, key: str, process: subprocess.Popen[str]) -> None:
        """Say where a datasite is as soon as it is ready; raises `InputError` where it ends before, or takes long."""
        home, deadline = self.consortium.home(key), time.monotonic() + READY_SECONDS
        while not (ready := home / "run" / "ready.json").exists():
            if process.poll() is not None:
                raise InputError(f"{key}: ended with code {process.returncode} before it was ready; see its log above")
            if time.monotonic() > deadline:
                raise InputError(f"{key}: not ready after {READY_SECONDS:.0f} s; see its log above")
            time.sleep(0.05)
        hospital = next(one for one in self.consortium.settings.hospitals if one.key == key)
        console = json.loads(ready.read_text())["console"]
        print(f"{hospital.organisation}: {hospital.email}, home {home}, console {console}", flush=True)

    def _watch(self) -> int:
        dead: set[str] = set()
        while not self.stop.wait(0.3):
            for key, process in self.processes.items():
                if key not in dead and process.poll() is not None:
                    dead.add(key)
                    print(f"{key}: ended with code {process.returncode}", flush=True)
                    if not self.keep_going:
                        print("stopping the others; use --keep-going to go on without it", flush=True)
                        return 1
            if len(dead) == len(self.processes):
                return 1
        return 0

    def _stop_all(self) -> None:
        running = [process for process in self.processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + 15
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def in_a_thread(act: Callable[[], None]) -> Future[None]:
    """Do it in a thread of its own, for which the end of the process doesn't wait."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            act()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def main() -> int:
    """Parse arguments, set the consortium up if it is new, launch it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("consortium", type=Path, help="a CONSORTIUM.toml")
    parser.add_argument("--state", type=Path, default=Path("local-datasites"), help="where the parties live")
    parser.add_argument("--store", help="store URL (default: a folder inside the state folder)")
    parser.add_argument("--keep-going", action="store_true", help="go on when a datasite dies")
    arguments = parser.parse_args()
    try:
        consortium = LocalConsortium.open(arguments.consortium, arguments.state)
        homes: Iterable[str] = [hospital.key for hospital in consortium.settings.hospitals]
        if not consortium.is_set_up():
            print(f"setting {consortium.settings.name} up in {consortium.state}", flush=True)
            homes = consortium.setting_up(arguments.store)
        elif arguments.store not in (None, used := consortium.store_url()):
            asked, used = shown(arguments.store), shown(used)
            raise InputError(f"--store {asked}: {consortium.state} uses {used}; choose another --state")
        return Launcher(consortium, arguments.keep_going).run(homes)
    except DatasitesError as error:
        print(f"launch_local_datasites: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else the interpreter's end looks through all that was imported
    sys.exit(code)
