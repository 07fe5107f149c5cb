"""Kills datasites and the researcher at random moments of studies, each of which is checked once it is closed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasites.aggregator.run_files import RunState
from datasites.researcher import Study
from datasites.transport.quarantine import Quarantine
from tests.alarms import alarming
from tests.e2e.support import KEYS, ROOT, LocalDatasites, Place

#: Few enough that each study is also killed about where it closes, many enough that most of it runs under fire.
KILLS_PER_STUDY = 25
PHASES = ("setup", "rounds", "closing")
#: Each kill makes the phase longer into which it falls: of a study's kills so many are kept for where it closes, and
#: one in so many may fall into its setup.
FOR_CLOSING, IN_SETUP = 3, 4
ROUNDS = 10
RUN = (
    "import sys; from datasites.researcher import Federation, Study\n"
    "with Federation.open(sys.argv[1]) as f: f.run(Study.load(sys.argv[2]), progress=False)\n"
)


def kill_while_studies_run(datasites: LocalDatasites, most: int, seed: int) -> tuple[int, Counter[str]]:
    """Kill so many times, from setup to close of study after study, each of which is checked.

    Returns how many studies ran, and how many kills fell into each of `PHASES`: none of them is left out.
    """
    assert most > FOR_CLOSING, f"{most} kills are too few for all of {', '.join(PHASES)}"
    draw = random.Random(seed)
    kills, number, since = Counter[str](), 0, datasites.places()
    while (left := most - kills.total()) > 0:
        assert number < most, f"only {kills.total()} kills fell into {number} studies"
        study = approved_study(datasites, f"kills-{number}")
        kills += run_under_fire(datasites, study, draw, min(KILLS_PER_STUDY, left))
        check(datasites, study, since)
        number += 1
        print(f"{study.terms.name}: {in_words(kills)} so far, each round made at most once, no alarm", flush=True)
    assert all(kills[phase] for phase in PHASES), in_words(kills)
    return number, kills


def in_words(kills: Counter[str]) -> str:
    return f"{kills.total()} kills ({', '.join(f'{kills[phase]} in {phase}' for phase in PHASES)})"


def approved_study(datasites: LocalDatasites, name: str) -> Study:
    study = datasites.study(name, rounds=str(ROUNDS))
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study)
        federation.wait(study, timeout=180, progress=False)
    return study


def run_under_fire(datasites: LocalDatasites, study: Study, draw: random.Random, most: int) -> Counter[str]:
    """Run the study, killing something every second or so, at most `most` times; returns how often in each phase.

    Setup and closing are short: the first kill there comes soon after they begin.
    """
    command = [sys.executable, "-c", RUN, str(datasites.consortium.researcher_home), str(study.folder)]

    def start() -> subprocess.Popen[bytes]:
        with researcher_log(datasites).open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    researcher = start()
    kills, reached = Counter[str](), "rounds"
    due, deadline = 0.0, time.monotonic() + 600
    while researcher.poll() != 0:
        assert time.monotonic() < deadline, "the study did not complete"
        if researcher.poll() is not None:
            researcher = start()
        time.sleep(0.01)
        phase = phase_of(datasites, study)
        if phase != reached and phase in ("setup", "closing"):
            due = time.monotonic() + draw.uniform(0, 0.1)
        reached = phase or reached
        used_up = {
            "": True,
            "setup": kills["setup"] >= most // IN_SETUP,
            "rounds": kills.total() >= most - FOR_CLOSING,
            "closing": kills.total() >= most,
        }
        if used_up[phase] or time.monotonic() < due or researcher.poll() is not None:
            continue
        victim = draw.choice(("researcher", *KEYS))
        if victim == "researcher":
            researcher.kill()
            researcher.wait()
            researcher = start()
        else:
            datasites.kill(victim)
            datasites.start(victim, wait=False)
        kills[phase] += 1
        due = time.monotonic() + draw.uniform(0.1, 1.5)
    datasites.wait_until_ready(*KEYS)
    return kills


def phase_of(datasites: LocalDatasites, study: Study) -> str:
    """Of `PHASES`, where the study's run is, as the researcher has it on disk; "" before and after."""
    try:
        file = datasites.consortium.researcher_home / "runs" / study.hash / "run.json"
        state = RunState.parse(file.read_bytes())
    except FileNotFoundError:
        return ""
    if state.epoch < 0 or state.accounts:
        return ""
    if state.closed or state.next_round > ROUNDS + 1:
        return "closing"
    return "rounds" if state.present or state.rounds else "setup"


def check(datasites: LocalDatasites, study: Study, since: Mapping[str, Place]) -> None:
    """The study is closed; every hospital charged each round once, before it released it once; every audit chain holds.

    Since the first of these studies began no log of anybody's has an alarm, between two studies neither.
    """
    with datasites.federation() as federation:
        run = federation.start(study)
    assert run.state.closed
    assert run.state.next_round == ROUNDS + 2
    assert any(record.outcome == "done" for record in run.state.rounds), "no sum was ever opened"
    emails = {key: datasites.email(key) for key in KEYS}
    rounds = run.state.rounds
    datasites.require_honest(
        study.hash,
        since,
        possible=range(1, ROUNDS + 2),
        sure={key: [r.round for r in rounds if email in r.survivors] for key, email in emails.items()},
        heads={key: [r.heads[email] for r in rounds if email in r.heads] for key, email in emails.items()},
    )
    assert alarming(researcher_log(datasites).read_text()) == [], "the researcher's run ended by itself"
    assert quarantined(datasites) == [], "somebody's own unfinished work was taken for an attack"


def researcher_log(datasites: LocalDatasites) -> Path:
    """What the researcher's processes have printed, one after another."""
    return datasites.folder / "researcher.log"


def quarantined(datasites: LocalDatasites) -> list[str]:
    """What anybody has in quarantine: where, and why."""
    consortium = datasites.consortium
    homes = [consortium.researcher_home, *(consortium.home(key) for key in KEYS)]
    folders = [home / "transport" / place for home in homes for place in ("quarantine", "mail/quarantine")]
    return [f"{folder}: {entry.reason}" for folder in folders for entry in Quarantine(folder).entries()]
