"""A datasite's process has no use for IPython; a researcher's notebook gets the real one, whatever came first."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

from datasites.control.without_ipython import TAKEN

ROOT = Path(__file__).resolve().parents[2]
PYSYFT = ("syft", "syft_rds", "syft_job", "syft_datasets", "syft_perms", "syft_notebook_ui", "syft_crypto_python")


def said(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pysyft_is_imported_without_ipython_and_what_comes_later_is_the_real_one() -> None:
    assert (
        said(
            "import sys, datasites.control.syft;"
            "from syft_notebook_ui.tabulator import HTML;"
            "before = [name for name in sys.modules if name.partition('.')[0] == 'IPython'];"
            "shown = HTML('<b>x</b>');"
            "import IPython.display;"
            "print(before, type(shown) is IPython.display.HTML, callable(IPython.get_ipython))"
        )
        == "[] True True"
    )


def test_where_ipython_is_there_pysyft_takes_from_it() -> None:
    assert (
        said(
            "import IPython.display, sys, datasites.control.syft;"
            "from syft_notebook_ui import tabulator;"
            "print(tabulator.HTML is IPython.display.HTML, tabulator.display is IPython.display.display,"
            " sys.modules['IPython'] is IPython)"
        )
        == "True True True"
    )


def imports_of(path: Path) -> list[tuple[str, list[str]]]:
    """What a module imports as it is loaded, in order: (module, names)."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found.append((node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
    return found


def test_the_stand_in_holds_what_this_pysyft_takes_of_ipython_and_no_more() -> None:
    taken = []
    for package in PYSYFT:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in Path(folder).rglob("*.py"):
                taken += [(module, *names) for module, names in imports_of(path) if module.startswith("IPython")]
    assert taken == [("IPython.display", *TAKEN)], "PySyft takes something else: see `without_ipython`"


def test_whoever_imports_pysyft_has_stood_in_before() -> None:
    importing = []
    for path in sorted((ROOT / "datasites").rglob("*.py")):
        modules = [module for module, _ in imports_of(path)]
        first = next((place for place, name in enumerate(modules) if name.partition(".")[0] in PYSYFT), None)
        if first is not None:
            importing.append(path.parent.name)
            assert "datasites.control.without_ipython" in modules[:first], path
    assert len(importing) >= 5
    assert set(importing) == {"control"}
