"""The rules between rooms (README, "The house"). Were one broken, a room could quietly know more than it may."""

import ast
import graphlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasites.enclave.worker import Worker
from tests import waiting
from tests.other_user import run_as_other_user

ROOT = Path(__file__).resolve().parents[1]

#: Room -> rooms of this project that it may import.
MAY_IMPORT = {
    "study": set(),
    "privacy": {"study"},
    "secagg": {"study"},
    "transport": {"study"},
    "control": {"study", "transport"},
    "enclave": {"study", "privacy"},
    "policies": {"study"},
    "aggregator": {"study", "secagg", "transport"},
    "hospital": {"study", "privacy", "secagg", "transport", "control", "enclave", "policies"},
    "researcher": {"study", "privacy", "transport", "control", "enclave", "aggregator"},
    "cli": {"study", "privacy", "transport", "enclave", "policies", "hospital", "researcher"},
}
#: Rooms inside `hospital`, each of which may import those above it and what lies at its own top, but for these modules,
#: which put the datasite together of all rooms.
HOSPITAL_ROOMS = (
    "isolated",
    "audit",
    "people",
    "budget",
    "data",
    "cases",
    "proposals",
    "rounds",
    "evidence",
    "console",
)
ASSEMBLES = {"setup", "doctor", "service", "serving"}
#: Modules at the top of `hospital` that rooms stand on, and what they may import of the rooms themselves.
STANDS_ON = {"site": {"datasites.hospital.audit.log"}}
#: Files at the top of `hospital`.
MOST_AT_THE_TOP = 16
TORCH_ROOMS = {"privacy", "enclave"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "policies":
        return "policies"
    return parts[1].removesuffix(".py")


def sources() -> list[Path]:
    return sorted([*(ROOT / "datasites").rglob("*.py"), *(ROOT / "policies").rglob("*.py")])


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in MAY_IMPORT, f"{path}: a room that is not in the picture"
    for module in imported_modules(path):
        parts = module.split(".")
        other = "policies" if parts[0] == "policies" else parts[1] if parts[0] == "datasites" and len(parts) > 1 else ""
        if other and other in MAY_IMPORT:
            assert other == room or other in MAY_IMPORT[room], f"{path} ({room}) imports {module}"
        if parts[0] == "django":
            assert room == "hospital", f"{path}: Django belongs to the hospital room"
        if parts[0] in ("torch", "opacus"):
            assert room in TORCH_ROOMS, f"{path}: torch belongs to training"


HOSPITAL = ROOT / "datasites" / "hospital"


def hospital_modules() -> dict[str, Path]:
    """Modules of `hospital` but for migrations, by their names."""
    paths = (path for path in HOSPITAL.rglob("*.py") if "migrations" not in path.parts)
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    del names["datasites.hospital"]
    return names


def test_hospital_has_few_files_at_its_top_and_each_other_in_a_room() -> None:
    assert len(list(HOSPITAL.glob("*.py"))) <= MOST_AT_THE_TOP
    folders = {path.name for path in HOSPITAL.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*HOSPITAL_ROOMS, "migrations"}


@pytest.mark.parametrize("module", sorted(hospital_modules()))
def test_a_room_of_the_hospital_imports_only_rooms_that_it_stands_on(module: str) -> None:
    known = hospital_modules()
    _, _, place, *_ = module.split(".")
    for other in imported_modules(known[module]) & set(known):
        _, _, theirs, *_ = other.split(".")
        if place in HOSPITAL_ROOMS and theirs in HOSPITAL_ROOMS:
            assert HOSPITAL_ROOMS.index(theirs) <= HOSPITAL_ROOMS.index(place), f"{module} imports {other}"
        elif place in HOSPITAL_ROOMS:
            assert theirs not in ASSEMBLES, f"{module} imports {other}, which puts rooms together"
        elif place not in ASSEMBLES:
            below = theirs not in (*HOSPITAL_ROOMS, *ASSEMBLES)
            assert below or other in STANDS_ON.get(place, set()), f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Circles, of whatever length; imports within functions count as well."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()
    }
    imports = {
        name: {other for other in imported_modules(path) & set(modules) if not name.startswith(f"{other}.")} - {name}
        for name, path in modules.items()
    }
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as circle:
        pytest.fail(" imports ".join(circle.args[1]))


@pytest.mark.parametrize(
    "module",
    [
        "datasites.study.package",
        "datasites.privacy.plan",
        "datasites.privacy.accountant",
        "datasites.secagg.member",
        "datasites.secagg.aggregator",
        "datasites.transport.mailroom",
        "datasites.control.syft",
        "datasites.enclave.worker",
        "datasites.enclave.verifier",
        "datasites.hospital.service",
        "datasites.cli",
        "policies.engine",
    ],
)
def test_the_datasite_process_never_loads_torch(module: str, tmp_path: Path) -> None:
    """Submitted code meets torch only inside the sandbox; a datasite that loaded it could be reached through it."""
    (tmp_path / "datasite.toml").write_text('organisation = "A"\nemail = "a@a.example.org"\nstore = "store"\n')
    connect = (
        f"from pathlib import Path; from datasites.hospital.database import connect; connect(Path({str(tmp_path)!r}))"
    )
    code = f"{connect}; import sys, {module}; print([m for m in ('torch', 'opacus') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the list of shipped files is unknown")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"datasites", "notebooks", "policies", "scripts", "tests", "pyproject.toml", "README.md", "LICENSE"}
    assert {top for top in tops if not top.startswith(".")} <= allowed


def _process() -> None:
    subprocess.run(["true"])


@contextmanager
def _thread() -> Iterator[None]:
    threading.Thread(target=print).start()
    yield


def _import_on_the_spot() -> float:
    from time import monotonic

    return monotonic()


class _Clock:
    @property
    def now(self) -> float:
        return time.monotonic()


class _Later(_Clock):
    pass


@pytest.mark.parametrize(
    "code",
    [
        _process,
        _thread,
        _import_on_the_spot,
        _Later,
        lambda: _process(),
        lambda: [_thread() for _ in range(2)],
        lambda: Worker.start,
        lambda: run_as_other_user("true"),
    ],
)
def test_code_that_waits_is_seen(code: Callable[..., object]) -> None:
    assert waiting.waits(code)


@pytest.mark.parametrize("code", [room_of, sources, lambda: imported_modules(ROOT)])
def test_code_that_does_not_wait_is_not(code: Callable[..., object]) -> None:
    assert not waiting.waits(code)


def test_a_test_module_that_can_wait_has_tests_that_are_marked(request: pytest.FixtureRequest) -> None:
    """Of all that run with this one. By what the modules import, which `tests.waiting` does not look at."""
    starters = waiting.MODULES | {"datasites.enclave.worker.Worker", "tests.hospital.running.Running"}
    modules: dict[Path, list[pytest.Item]] = {}
    for item in request.session.items:
        modules.setdefault(item.path, []).append(item)
    unmarked = [
        path
        for path, items in modules.items()
        if starters & imported_modules(path)
        and not any(item.get_closest_marker("waits") for item in items)
        and not any(map(waiting.waits, _left_out(items)))
    ]
    assert unmarked == [], "mark what waits in these modules `waits`, or let `tests.waiting` see it"


def _left_out(items: list[pytest.Item]) -> list[object]:
    """Tests of the module of these that were not asked for, such as slow ones."""
    module = items[0].getparent(pytest.Module)
    assert module is not None
    asked = {getattr(item, "originalname", item.name) for item in items}
    return [thing for name, thing in vars(module.obj).items() if name.startswith("test_") and name not in asked]
