"""Hooks before a commit (`.pre-commit-config.yaml`)."""

from pathlib import Path

import pytest
from pre_commit.clientlib import load_config
from pre_commit.languages import pygrep

CONFIG = load_config(str(Path(__file__).resolve().parents[1] / ".pre-commit-config.yaml"))
HOOKS = {hook["id"]: hook for repository in CONFIG["repos"] for hook in repository["hooks"]}


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        ("budget: a charge is made once\n\nBecause a retry may come.\n", True),
        ("house: " + 65 * "x", True),
        ("house: " + 66 * "x", False),
        ("A charge is made once\n\nbudget: said below.\n", False),
        ("budget:\n", False),
        ('Revert "budget: a charge is made once"\n', True),
    ],
)
def test_a_subject_names_a_room_and_is_short(message: str, passes: bool, tmp_path: Path) -> None:
    written = tmp_path / "COMMIT_EDITMSG"
    written.write_text(message)
    hook = HOOKS["subject"]
    assert (pygrep.main([*hook["args"], hook["entry"], str(written)]) == 0) == passes


def test_nothing_is_downloaded() -> None:
    assert {repository["repo"] for repository in CONFIG["repos"]} == {"local"}
    assert {hook["language"] for hook in HOOKS.values()} <= {"system", "unsupported", "pygrep"}
