"""Kill -9 of datasites and of the researcher at 50 random moments of a study with 10 rounds (I5, I6, I11)."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from datasites.researcher import Study
from datasites.study.audit_chain import verify
from datasites.transport.quarantine import Quarantine
from tests.e2e.support import KEYS, ROOT, LocalDatasites

KILLS = 50
#: Few enough that each study is also killed about where it closes, many enough that most of it runs under fire.
KILLS_PER_STUDY = 25
#: Records of a study that tell people of somebody who breaks the protocol, or of an error.
ALARMS = {"letter_rejected", "letter_not_sent", "setup_refused", "survivors_refused", "contained", "stopped"}
RUN = (
    "import sys; from datasites.researcher import Federation, Study\n"
    "with Federation.open(sys.argv[1]) as f: f.run(Study.load(sys.argv[2]), progress=False)\n"
)


@pytest.mark.slow
def test_fifty_kills_and_every_study_completes_with_one_release_per_round(datasites: LocalDatasites) -> None:
    """Kills count only while a study is under way; a study that completes is followed by the next.

    Moments and victims are drawn with a seed, so that a failure can be met again (about). 200: `scripts/show_kills.py`.
    """
    kill_while_studies_run(datasites, KILLS, seed=17)


def kill_while_studies_run(datasites: LocalDatasites, most: int, seed: int) -> int:
    """Kill so many times, from setup to close of study after study, each of which is checked; returns how many ran."""
    draw = random.Random(seed)
    kills = number = 0
    while kills < most:
        assert number < most, f"only {kills} kills fell into {number} studies"
        study = approved_study(datasites, f"kills-{number}")
        kills += run_under_fire(datasites, study, draw, min(KILLS_PER_STUDY, most - kills))
        check(datasites, study)
        number += 1
        print(f"{study.terms.name}: {kills} kills so far, every round made once or not at all, no alarm", flush=True)
    return number


def approved_study(datasites: LocalDatasites, name: str) -> Study:
    study = datasites.study(name, rounds="10")
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study)
        federation.wait(study, timeout=180, progress=False)
    return study


def run_under_fire(datasites: LocalDatasites, study: Study, draw: random.Random, most: int) -> int:
    """Run the study, killing something every second or so, at most `most` times; returns how many kills it took."""
    command = [sys.executable, "-c", RUN, str(datasites.consortium.researcher_home), str(study.folder)]
    researcher = subprocess.Popen(command, cwd=ROOT)
    kills = 0
    deadline = time.monotonic() + 600
    while researcher.poll() != 0:
        assert time.monotonic() < deadline, "the study did not complete"
        if researcher.poll() is not None:
            researcher = subprocess.Popen(command, cwd=ROOT)
        time.sleep(draw.uniform(0.1, 1.5))
        if kills < most and researcher.poll() is None:
            victim = draw.choice(("researcher", *KEYS))
            if victim == "researcher":
                researcher.kill()
                researcher.wait()
                researcher = subprocess.Popen(command, cwd=ROOT)
            else:
                datasites.kill(victim)
                datasites.start(victim, wait=False)
            kills += 1
    datasites.wait_until_ready(*KEYS)
    return kills


def check(datasites: LocalDatasites, study: Study) -> None:
    """The study is closed; every hospital charged before, and released once, each round; every audit chain holds."""
    with datasites.federation() as federation:
        run = federation.start(study)
        roster = federation.roster
    assert run.state.closed
    assert run.state.next_round == 12
    assert any(record.outcome == "done" for record in run.state.rounds), "no sum was ever opened"
    for key in KEYS:
        log = [record for record in datasites.audit_log(key) if record["fields"].get("study") == study.hash]
        released = [record["fields"]["round"] for record in log if record["kind"] == "released"]
        charged = {record["fields"]["round"] for record in log if record["kind"] == "charged"}
        assert len(set(released)) == len(released), f"{key} released a round twice: {released}"
        assert set(released) <= charged
        email = datasites.email(key)
        heads = tuple(record.heads[email] for record in run.state.rounds if email in record.heads)
        report = verify(datasites.consortium.home(key) / "audit.jsonl", roster.get(email).public_key, heads)
        assert report.ok, report.reason
        alarms = [record["kind"] for record in log if record["kind"] in ALARMS]
        assert alarms == [], f"{key} raised a false alarm"
    assert quarantined(datasites) == [], "somebody's own unfinished work was taken for an attack"


def quarantined(datasites: LocalDatasites) -> list[str]:
    """What anybody has in quarantine: where, and why."""
    consortium = datasites.consortium
    homes = [consortium.researcher_home, *(consortium.home(key) for key in KEYS)]
    folders = [home / "transport" / place for home in homes for place in ("quarantine", "mail/quarantine")]
    return [f"{folder}: {entry.reason}" for folder in folders for entry in Quarantine(folder).entries()]
