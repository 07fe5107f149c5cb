"""Real local datasites for tests: the heart disease consortium with a budget that many studies fit into."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasites.privacy import sampling

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

import demo  # noqa: E402
from consortium import LocalConsortium, LocalHospital  # noqa: E402

from datasites.researcher import Federation, Study  # noqa: E402
from datasites.study.audit_chain import PublicHead, records, verify_log  # noqa: E402
from datasites.study.roster import Roster  # noqa: E402
from tests.alarms import Written, faults  # noqa: E402

HEART = SCRIPTS / "heart_disease"
KEYS = ("cleveland", "hungary", "switzerland", "va")


class Place(NamedTuple):
    """How far a hospital's audit log (records) and its service's log (bytes) had come at some moment."""

    records: int = 0
    service: int = 0


class LocalDatasites:
    """Datasite processes that a test starts, kills and starts again one by one."""

    def __init__(
        self,
        folder: Path,
        *,
        epsilon: float = 90.0,
        serve: list[str] | None = None,
        store: str | None = None,
        database: str = "sqlite",
    ) -> None:
        """database: of the first hospital; the others have files."""
        shutil.copytree(HEART, folder / "heart_disease", ignore=shutil.ignore_patterns("__pycache__"))
        file = folder / "heart_disease" / "consortium.toml"
        text, changed = re.subn(r"(?m)^epsilon = .*$", f"epsilon = {epsilon}", file.read_text())
        assert changed == 1
        file.write_text(text.replace(f'key = "{KEYS[0]}"', f'key = "{KEYS[0]}"\ndatabase = {json.dumps(database)}'))
        self.folder = folder
        self.consortium = LocalConsortium.open(file, folder / "state")
        self.consortium.set_up(store)
        self._serve = serve or ["-m", "datasites.cli", "serve"]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *keys: str, wait: bool = True, serve: list[str] | None = None) -> None:
        """Start datasites, and wait until they are ready; `serve` replaces what is run."""
        for key in keys:
            home = self.consortium.home(key)
            (home / "run" / "ready.json").unlink(missing_ok=True)
            with self.service_log(key).open("ab") as log:
                self._processes[key] = subprocess.Popen(
                    [sys.executable, *(serve or self._serve), "--home", str(home)],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        if wait:
            self.wait_until_ready(*keys)

    def wait_until_ready(self, *keys: str) -> None:
        """Wait until these datasites serve."""
        deadline = time.monotonic() + 120
        for key in keys:
            while not (self.consortium.home(key) / "run" / "ready.json").exists():
                assert self._processes[key].poll() is None, self.log(key)
                assert time.monotonic() < deadline, self.log(key)
                time.sleep(0.1)

    def kill(self, key: str) -> None:
        """Kill -9, the worker with it (the kernel does that)."""
        process = self._processes.pop(key)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """Stop all that run."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self._processes.clear()

    def log(self, key: str) -> str:
        """The end of a datasite's log."""
        return self.service_log(key).read_text()[-4000:]

    def service_log(self, key: str) -> Path:
        """What a datasite's processes have printed, one after another."""
        return self.folder / f"{key}.log"

    def places(self) -> dict[str, Place]:
        """How far the logs of all hospitals have come."""
        return {key: Place(len(self.audit_log(key)), self.service_log(key).stat().st_size) for key in KEYS}

    def written(self, key: str, since: Place) -> Written:
        """What a hospital has written since then."""
        log = self.consortium.home(key) / "audit.jsonl"
        printed = self.service_log(key).read_bytes()[since.service :].decode(errors="replace")
        return Written([record for record in records(log) if record.seq > since.records], printed)

    def require_honest(
        self,
        study: str,
        since: Mapping[str, Place],
        *,
        possible: Collection[int],
        sure: Mapping[str, Collection[int]],
        heads: Mapping[str, Sequence[PublicHead]] | None = None,
    ) -> None:
        """Every hospital's logs hold this study's rounds as they must, no alarm since then, and an unbroken chain.

        possible, sure: see `tests.alarms.faults`; sure and heads by hospital, the heads being those that others keep.
        """
        for key in KEYS:
            found = faults(self.written(key, since[key]), study, possible, sure[key])
            assert found == [], f"{key}: {found}"
            home = self.consortium.home(key)
            own = Roster.load(home / "roster.json").get(self.email(key)).public_key
            report = verify_log(home / "audit.jsonl", own, (heads or {}).get(key, ()))
            assert report.ok, f"{key}: {report.reason}"

    def hospital(self, key: str) -> LocalHospital:
        """The consortium's entry of one hospital."""
        return next(hospital for hospital in self.consortium.settings.hospitals if hospital.key == key)

    def email(self, key: str) -> str:
        """E-mail of one hospital."""
        return self.hospital(key).email

    def command(self, key: str, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
        """`datasites …` at one hospital; does not raise."""
        return subprocess.run(
            [sys.executable, "-m", "datasites.cli", *arguments, "--home", str(self.consortium.home(key))],
            input=password + "\n",
            capture_output=True,
            text=True,
        )

    def federation(self) -> Federation:
        """The researcher, connected."""
        federation = Federation.open(self.consortium.researcher_home)
        federation.connect()
        return federation

    def study(self, name: str, **lines: str) -> Study:
        """The heart study under another name, so with another hash, and with other values in study.toml."""
        folder = self.folder / f"study-{name}"
        shutil.copytree(self.consortium.study_folder, folder)
        text = (folder / "study.toml").read_text()
        for key, value in {"name": f'"{name}"', **lines}.items():
            text, changed = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text, count=1)
            assert changed == 1, key
        (folder / "study.toml").write_text(text)
        return Study.load(folder)

    def approve(self, study: Study, *keys: str) -> None:
        """Both people approve at these hospitals, or at all of them; in one process each, where commands take 20."""
        script = str(ROOT / "tests" / "e2e" / "two_people.py")
        passwords = json.dumps(self.consortium.passwords())
        processes = {}
        for key in keys or KEYS:
            command = [sys.executable, script, str(self.consortium.home(key)), study.hash]
            processes[key] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
        for key, process in processes.items():
            _, problem = process.communicate(passwords)
            assert process.returncode == 0, f"{key}: {problem}"

    def approve_by_commands(self, study: Study) -> None:
        """As the demo does: each person reads `review show` and types `review approve`."""
        demo.approve_everywhere(self.consortium, study)

    def audit_log(self, key: str) -> list[dict[str, Any]]:
        """Records of one hospital's audit log."""
        return [json.loads(line) for line in (self.consortium.home(key) / "audit.jsonl").read_text().splitlines()]


def training_rows(local: LocalDatasites, key: str, study_hash: str) -> tuple[np.ndarray, np.ndarray]:
    """The hospital's training rows, read by this test as the operator of the machine."""
    with np.load(local.consortium.home(key) / "prepared" / study_hash / "records.npz") as stored:
        x, y, patient = stored["x"], stored["y"], stored["patient"]
    dataset = local.consortium.settings.dataset
    held_out = sampling.held_out(patient, bytes.fromhex(dataset.split_salt), dataset.held_out)
    return x[~held_out], y[~held_out]
