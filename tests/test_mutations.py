"""The table of wrong lines must fit the code: a mutation whose line has changed would show nothing."""

import ast
import subprocess
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_its_line_stands_in_its_file_once_and_its_tests_are_there(mutation: Mutation) -> None:
    original = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed = mutation.applied_to(original)
    assert changed != original
    ast.parse(changed)
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{test}: there is no such test"


def test_no_wrong_line_names_what_is_not_there(tmp_path: Path) -> None:
    """Else any test that runs it would catch it, whatever it guards."""
    files = []
    for number, mutation in enumerate(MUTATIONS):
        if mutation.file.endswith(".py"):
            files.append(tmp_path / f"{number}.py")
            files[-1].write_text(mutation.applied_to((ROOT / mutation.file).read_text("utf-8")), "utf-8")
    command = ["ruff", "check", "--isolated", "--select", "F821,F823", "--output-format", "concise", *map(str, files)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_names_tell_mutations_apart() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 36
