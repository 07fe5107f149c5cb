"""The checker of logs (`tests.alarms`) finds each fault, in logs that the product's own code writes and reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from datasites.hospital.audit.log import AuditLog
from datasites.study.audit_chain import records
from datasites.study.identity import Identity
from tests.alarms import ALL, OF_ITSELF, OF_OTHERS, Written, faults

ROOT = Path(__file__).resolve().parents[1]
HOSPITAL = Identity.generate("datasite@general.example")
STUDY, OTHER_STUDY = "ab" * 32, "cd" * 32
ROUNDS = (1, 2, 3)
SERVICE = (
    "2026-11-29 12:00:01,234 INFO datasites.hospital.service: ready: /home\n"
    "2026-11-29 12:00:02,234 WARNING datasites.hospital.outages: database postgresql://datasite:***@localhost is "
    "unavailable: terminating connection due to administrator command; waiting, tried again every 2 s\n"
)

Writing = Callable[[AuditLog], object]


def a_round(log: AuditLog, number: int, *kinds: str) -> None:
    for kind in kinds or ("charged", "released", "unmasked"):
        log.append(kind, study=STUDY, round=number)


def written(folder: Path, *more: Writing, service: str = SERVICE) -> Written:
    """Three honest rounds, another study's, and what `more` writes after them."""
    log = AuditLog(folder / "audit.jsonl", HOSPITAL)
    for number in ROUNDS:
        a_round(log, number)
        log.append("charged", study=OTHER_STUDY, round=number)
    for write in more:
        write(log)
    return Written(list(records(folder / "audit.jsonl")), service)


def test_honest_logs_pass(tmp_path: Path) -> None:
    assert faults(written(tmp_path), STUDY, possible=ROUNDS, sure=ROUNDS) == []


def test_a_round_that_was_charged_and_missed_is_no_fault_unless_it_must_be_there(tmp_path: Path) -> None:
    missed = written(tmp_path, lambda log: a_round(log, 4, "charged"))
    assert faults(missed, STUDY, possible=(*ROUNDS, 4), sure=ROUNDS) == []
    assert faults(missed, STUDY, possible=(*ROUNDS, 4), sure=(*ROUNDS, 4)) == ["not released: rounds [4]"]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda log: a_round(log, 3, "charged"), "charged more than once: rounds [3]"),
        (lambda log: a_round(log, 3, "released"), "released more than once: rounds [3]"),
        (lambda log: a_round(log, 3, "unmasked"), "unmasked more than once: rounds [3]"),
        (lambda log: a_round(log, 4, "released", "charged"), "round 4 was released without being charged before"),
        (lambda log: a_round(log, 4, "released"), "round 4 was released without being charged before"),
        (lambda log: a_round(log, 4, "charged", "unmasked"), "round 4 was unmasked without being released before"),
        (lambda log: a_round(log, 5), "charged, and not of the study: rounds [5]"),
        (lambda log: log.append("contained", what="syft", reason="OSError"), "alarm in record 14: contained"),
        (lambda log: log.append("stopped", case=1, reason="can't be opened"), "alarm in record 14: stopped"),
        (lambda log: log.append("stopped", study=STUDY, reason="rolled back"), "alarm in record 14: stopped"),
        *(
            (lambda log, kind=kind: log.append(kind, study=OTHER_STUDY, reason="no"), f"alarm in record 14: {kind}")
            for kind in sorted(OF_OTHERS)
        ),
    ],
)
def test_each_fault_of_an_audit_log_is_found(tmp_path: Path, write: Writing, said: str) -> None:
    found = faults(written(tmp_path, write), STUDY, possible=(*ROUNDS, 4), sure=ROUNDS)
    assert [sentence for sentence in found if said in sentence], found


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "Fatal Python error: Segmentation fault",
        "datasites: audit.jsonl: record 7 was changed",
        "2026-11-29 12:00:03,234 ERROR datasites.hospital.service: case 1: KeyError",
        "2026-11-29 12:00:03,234 ERROR datasites.hospital.rounds.run: study stopped: round 2: memory",
        "2026-11-29 12:00:03,234 WARNING datasites.hospital.rounds.mail: study ab: letter_rejected: replay",
    ],
)
def test_each_fault_of_a_services_log_is_found(tmp_path: Path, line: str) -> None:
    found = faults(written(tmp_path, service=f"{SERVICE}{line}\n{SERVICE}"), STUDY, possible=ROUNDS, sure=ROUNDS)
    assert found == [f"alarm in the service's log: {line}"]


def test_alarms_that_others_may_have_given_rise_to_are_left_out_when_asked(tmp_path: Path) -> None:
    both = written(
        tmp_path,
        lambda log: log.append("letter_rejected", study=STUDY, reason="replay"),
        lambda log: log.append("contained", what="syft", reason="OSError"),
        service=SERVICE + "2026-11-29 12:00:03,234 WARNING d.h.correspondence: study abab: letter_rejected: replay\n",
    )
    (found,) = faults(both, STUDY, possible=ROUNDS, sure=ROUNDS, alarms=OF_ITSELF)
    assert "contained" in found


def test_every_event_that_letters_give_rise_to_is_a_known_alarm() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "datasites" / "hospital").rglob("*.py")))
    noted = set(re.findall(r"\bnote\(\s*\"(\w+)\"", text))
    assert noted, "no event is noted any more; mend this test"
    assert noted <= OF_OTHERS
    for kind in ALL:
        assert f'"{kind}"' in text, f"{kind}: nothing writes it any more"
