#!/usr/bin/env python3
"""The main job, end to end, on one machine: four hospitals train one model on UCI heart disease.

Each hospital is a datasite process of its own. A study is submitted through syft, reviewed by two people per hospital
with the commands that anyone uses, trained under differential privacy, summed securely, evaluated, and reported to
DIR/result.json and DIR/model.safetensors.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, str(SCRIPTS))

from consortium import OFFICER, STEWARD, LocalConsortium, LocalHospital  # noqa: E402

from datasites.study.errors import DatasitesError, InputError  # noqa: E402
from datasites.study.package import StudyPackage  # noqa: E402

if TYPE_CHECKING:
    from datasites.aggregator.run import Run
    from datasites.researcher import Study

LAUNCH_SECONDS = 180.0


class LocalDatasites:
    """The launcher as a child process; its output goes on with ours."""

    def __init__(self, consortium_file: Path, state: Path, store: str | None, keep_going: bool) -> None:
        command = [
            sys.executable,
            str(SCRIPTS / "launch_local_datasites.py"),
            str(consortium_file),
            "--state",
            str(state),
        ]
        command += ["--store", store] if store else []
        command += ["--keep-going"] if keep_going else []
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(line, end="", flush=True)
            if line.startswith("all datasites are ready"):
                self._ready.set()

    def wait_until_ready(self) -> None:
        """Wait for the launcher; raise `InputError` when it ends before, or takes too long."""
        deadline = time.monotonic() + LAUNCH_SECONDS
        while not self._ready.wait(0.2):
            if self._process.poll() is not None:
                raise InputError("the datasites did not start; see above")
            if time.monotonic() > deadline:
                raise InputError(f"the datasites were not ready after {LAUNCH_SECONDS:.0f} s; see above")

    def stop(self) -> None:
        """Stop all datasites and wait for them."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)


def commands(consortium: LocalConsortium, hospital: LocalHospital, *arguments: str, password: str = "") -> str:
    """Run `datasites …` at one hospital, as its people do; raises `InputError` with what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "datasites.cli", *arguments, "--home", str(consortium.home(hospital.key))],
        input=password + "\n",
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise InputError(f"{hospital.key}: datasites {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout


def case_id_of(consortium: LocalConsortium, hospital: LocalHospital, study: Study, timeout: float = 180) -> int:
    """Wait until the study can be reviewed at the hospital; returns the number of its case."""
    return int(commands(consortium, hospital, "review", "wait", study.hash, "--seconds", str(timeout)))


def approve(consortium: LocalConsortium, hospital: LocalHospital, study: Study) -> None:
    """Both demo people of one hospital approve what was read, each with their own password."""
    case_id = str(case_id_of(consortium, hospital, study))
    shown = commands(consortium, hospital, "review", "show", case_id)
    found = re.search(r"^approval hash +([0-9a-f]{64})$", shown, flags=re.MULTILINE)
    if found is None:
        raise InputError(f"{hospital.key}: the case shows no approval hash")
    for name in (STEWARD, OFFICER):
        commands(
            consortium, hospital, "review", "approve", case_id, "--as", name, "--reason", "demo",
            "--hash", found[1], "--password-stdin", password=consortium.passwords()[name],
        )  # fmt: skip
    print(f"{hospital.organisation}: approved by two people", flush=True)


def approve_everywhere(consortium: LocalConsortium, study: Study) -> None:
    """At each hospital as soon as it has examined the study."""
    with ThreadPoolExecutor(len(consortium.settings.hospitals)) as pool:
        for done in [pool.submit(approve, consortium, hospital, study) for hospital in consortium.settings.hospitals]:
            done.result()


def how_to_approve(consortium: LocalConsortium) -> None:
    """Print what a person does at each hospital with --interactive."""
    passwords = consortium.passwords()
    print("\nThe study waits for review. At each hospital, as two people:")
    for hospital in consortium.settings.hospitals:
        home = consortium.home(hospital.key)
        print(f"  {hospital.organisation}:")
        print(f"    datasites review list --home {home}")
        print(f"    datasites review show CASE --home {home}")
        for name in (STEWARD, OFFICER):
            print(f"    datasites review approve CASE --hash HASH --as {name} --reason WHY --home {home}")
    print("Passwords: " + ", ".join(f"{name} {passwords[name]}" for name in (STEWARD, OFFICER)), flush=True)


def drop(consortium: LocalConsortium, key: str) -> None:
    """Kill one datasite without warning, with its worker."""
    ready = json.loads((consortium.home(key) / "run" / "ready.json").read_text())
    os.killpg(ready["pid"], signal.SIGKILL)
    print(f"{key}: killed", flush=True)


def train(run: Run, consortium: LocalConsortium, dropped: tuple[str, int] | None) -> None:
    """All rounds, the final evaluation and the accounts; kills a hospital before its round when asked to."""
    if dropped is not None:
        run.complete(rounds=dropped[1] - 1)
        drop(consortium, dropped[0])
    run.complete()


def parse_drop(text: str) -> tuple[str, int]:
    """HOSPITAL@ROUND."""
    key, _, number = text.partition("@")
    if not key or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOSPITAL@ROUND, such as va@5")
    return key, int(number)


def study_folder(consortium: LocalConsortium, folder: Path, rounds: int | None) -> Path:
    """Return the consortium's study, or a copy with another number of rounds (another study, with its own hash)."""
    if rounds is None:
        return consortium.study_folder
    shutil.copytree(consortium.study_folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    terms = folder / "study.toml"
    text, count = re.subn(r"(?m)^rounds = \d+$", f"rounds = {rounds}", terms.read_text())
    if count != 1:
        raise InputError(f"{terms}: has no line `rounds = N`; add it")
    terms.write_text(text)
    return folder


def main() -> int:
    """Parse arguments, run the demo, report; exit code 0 only when the model was trained and written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="where results go (default: out)")
    parser.add_argument("--rounds", type=int, help="training rounds (default: as the study says)")
    parser.add_argument("--drop", type=parse_drop, metavar="HOSPITAL@ROUND", help="kill a datasite before that round")
    parser.add_argument("--interactive", action="store_true", help="stop at the approvals and say what to do")
    parser.add_argument("--store", help="store URL (default: a folder)")
    parser.add_argument("--consortium", type=Path, default=SCRIPTS / "heart_disease" / "consortium.toml")
    arguments = parser.parse_args()
    # A terminated demo stops its datasites as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return demo(arguments)
    except DatasitesError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


def demo(arguments: argparse.Namespace) -> int:
    """Run the whole demo; raise `DatasitesError` with one clear line."""
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    state = out / "state"
    if left := [str(path) for path in (state, out / "study") if path.exists()]:
        raise InputError(
            f"{' and '.join(left)}: left from another demo; remove what is named here, or choose another --out"
        )
    consortium = LocalConsortium.open(arguments.consortium, state)
    if arguments.drop and arguments.drop[0] not in [hospital.key for hospital in consortium.settings.hospitals]:
        raise InputError(f"--drop {arguments.drop[0]}: no such hospital in {arguments.consortium}")
    folder = study_folder(consortium, out / "study", arguments.rounds)
    terms = StudyPackage.read(folder).study
    if arguments.drop and arguments.drop[1] > (last := terms.rounds + 1):
        raise InputError(f"--drop {arguments.drop[0]}@{arguments.drop[1]}: the last round is {last}, the evaluation")
    phases = Phases()
    datasites = LocalDatasites(arguments.consortium, state, arguments.store, keep_going=arguments.drop is not None)
    try:
        # Imported while the datasites start.
        from datasites.researcher import Federation, Study, report

        study = Study.load(folder)
        datasites.wait_until_ready()
        phases.begin("submission and approval")
        with Federation.open(consortium.researcher_home) as federation:
            federation.connect()
            federation.submit(study)
            if arguments.interactive:
                how_to_approve(consortium)
            else:
                approve_everywhere(consortium, study)
            federation.wait(study)
            phases.begin("training and protocol")
            run = federation.start(study)
            try:
                train(run, consortium, arguments.drop)
            finally:
                if run.state.rounds:  # trained rounds are paid for: their model is kept whatever comes after them
                    report.save_model(run, out / "model.safetensors")
            result = report.result(run)
        phases.begin("stop")
    finally:
        datasites.stop()
    phases.end()
    result["seconds"] |= phases.seconds()
    result["phases"] = phases.begun
    (out / "result.json").write_text(json.dumps(result, indent=1))
    summarise(result, out)
    return 0


class Phases:
    """When each part of the demo began, by the clock on the wall; the first is the launch, and began with this."""

    def __init__(self) -> None:
        self.begun: list[dict[str, str | float]] = []
        self.begin("launch")

    def begin(self, name: str) -> None:
        """Name the phase that begins now, with which the last one ends."""
        self.begun.append({"phase": name, "began": round(time.time(), 3)})

    def end(self) -> None:
        """End the last one."""
        self.begin("end")

    def seconds(self) -> dict[str, float]:
        """How long each phase took, and all of them."""
        moments = [float(one["began"]) for one in self.begun]
        took = {
            str(one["phase"]): round(after - float(one["began"]), 2)
            for one, after in zip(self.begun, moments[1:], strict=False)
        }
        return took | {"total": round(moments[-1] - moments[0], 2)}


def summarise(result: dict[str, Any], out: Path) -> None:
    """Print the few lines that a person wants at the end."""
    final = result["final"]
    print(f"\n{result['training_rounds']} rounds with {len(result['hospitals'])} hospitals")
    for name in ("auc", "accuracy"):
        figure = final[name]
        if figure["value"] is None:
            print(f"{name}: {figure['reason']}")
            continue
        interval = f"95 % {figure['low']:.3f} to {figure['high']:.3f}, noise sd {figure['noise_sd']:.3f}"
        print(f"{name}: {figure['value']:.3f} ({interval})")
    for email, loss in result["privacy"].items():
        print(
            f"{email}: epsilon {loss['epsilon_charged']:.3f} of at most {loss['epsilon_cap']:g} at the study's delta "
            f"{loss['delta']:g} (PLD), {loss['steps']} steps in {loss['rounds']} rounds"
        )
    print("seconds: " + ", ".join(f"{name} {value}" for name, value in result["seconds"].items()))
    print(f"written: {out / 'result.json'}, {out / 'model.safetensors'}")


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else the interpreter's end looks through all that was imported
    sys.exit(code)
