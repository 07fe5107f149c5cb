"""What a datasite's own process loads stays in its memory for months, and is there for whoever breaks into it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from datasites.hospital.config import Home
from tests.hospital.cleveland import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
#: Loaded by no service: notebooks' and tables' libraries, and those of the accountant, of training and of file formats.
NOT_LOADED = {"IPython", "matplotlib", "pandas", "pyarrow", "scipy", "dp_accounting", "torch", "opacus"}
#: Modules of a process apart, which read tables and price: none of a datasite's own process imports one.
APART = {
    f"datasites.hospital.{name}"
    for name in (
        "budget.accounting_child",
        "data.harmonise",
        "data.plausible",
        "data.reading_child",
        "data.tables",
        "isolated.child",
    )
}

#: Makes a home, serves it until it is ready, and prints what is loaded then.
SERVE = """
import json, os, shutil, signal, sys, threading, time, urllib.request
from pathlib import Path

furnished, home = map(Path, sys.argv[1:3])

def look():
    while not (home / "run" / "ready.json").exists():
        time.sleep(0.05)
    console = json.loads((home / "run" / "ready.json").read_bytes())["console"]
    assert urllib.request.urlopen(console + "login/").status == 200  # the first page loads all views
    print(json.dumps(sorted(sys.modules)), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

from datasites.cli import main
from datasites.hospital.setup import initialise
initialise(home, sys.stdin.read())
shutil.copytree(furnished / "data", home / "data")
shutil.copy(furnished / "mapping.toml", home)
threading.Thread(target=look, daemon=True).start()
sys.argv[1:] = ["serve", "--home", str(home)]
main()
"""


@pytest.fixture(scope="module")
def loaded(furnished: Home, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Modules of a service that is ready and has shown a page of its console, in a home with a dataset."""
    folder = tmp_path_factory.mktemp("serving")
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(furnished.root), str(folder / "home")],
        input=SETTINGS.format(store=folder / "store", database="sqlite") + "\n[console]\nport = 0\n",
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("library", sorted(NOT_LOADED))
def test_a_service_idles_without(library: str, loaded: set[str]) -> None:
    assert {"datasites.hospital.service", "datasites.hospital.console.views.cases"} <= loaded
    assert sorted(name for name in loaded if name.partition(".")[0] == library) == []


def test_a_service_loads_nothing_that_reads_tables_or_prices(loaded: set[str]) -> None:
    assert loaded & APART == set()


def test_what_reads_tables_or_prices_is_imported_by_its_own_kind_alone() -> None:
    """In whatever function: what is loaded late stays as well."""
    for path in sorted((ROOT / "datasites").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module in APART:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not names & APART, f"{path} imports {names & APART}"
