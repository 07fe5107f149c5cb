"""The guides say what is there: commands that exist, files that exist, links that work, tests and functions by name.

A guide that names a command or a file that was renamed misleads exactly those who rely on it.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from datasites.cli import app
from datasites.hospital.config import DatasiteSettings
from datasites.study.errors import read_toml
from tests.rooms import HOSPITAL_ROOMS, MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDES = sorted(
    [
        README,
        ROOT / "policies" / "README.md",
        ROOT / "scripts" / "README.md",
        *(ROOT / ".github").glob("*.md"),
        *(path for path in (ROOT / "datasites").rglob("*.md") if path.name != "INVARIANTS.md"),
    ]
)
MOST_LINES_OF_README = 220
TOPS = ("datasites", "notebooks", "policies", "scripts", "tests", ".github")
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
#: A path from the root, or a file of code or words, with what is named in it.
PATH = re.compile(r"(?P<path>[\w.*/-]+?)(?:::(?P<name>[\w.]+))?")
ENDINGS = (".py", ".md", ".sh", ".ipynb", ".cedar")
#: What the researcher's guide calls things, and what they are.
RESEARCHERS = {
    "federation": "datasites/researcher/federation.py::Federation",
    "Federation": "datasites/researcher/federation.py::Federation",
    "study": "datasites/researcher/study.py::Study",
    "Study": "datasites/researcher/study.py::Study",
    "run": "datasites/aggregator/run.py::Run",
    "report": "datasites/researcher/report.py",
}
COMMAND: Any = typer.main.get_command(app)

every_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(guide: Path) -> Iterator[str]:
    """Its code blocks that are no program or settings."""
    yield from (text for language, text in BLOCK.findall(guide.read_text()) if language in ("", "bash", "sh"))


def spans(guide: Path) -> Iterator[str]:
    """What stands in it as code, within sentences."""
    yield from (" ".join(text.split()) for text in SPAN.findall(BLOCK.sub("", guide.read_text())))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a line calls, and its arguments; fails where there is none of that name."""
    found = COMMAND
    while hasattr(found, "commands") and words and not words[0].startswith("-"):
        assert words[0] in found.commands, f"no command {words[0]!r}; there are {', '.join(found.commands)}"
        found, words = found.commands[words[0]], words[1:]
    return found, words


def fault_of(line: str, *, whole: bool) -> str:
    """What is wrong with a command line; "" if nothing. whole: it has all that the command needs."""
    try:
        found, given = command_of(shlex.split(line, comments=True)[1:])
    except AssertionError as error:
        return str(error)
    if hasattr(found, "commands"):
        return "" if not given and not whole else "names a group and no command"
    options = {name: param for param in found.params for name in (*param.opts, *param.secondary_opts)}
    seen, values = set(), 0
    words = iter(given)
    for word in words:
        if not word.startswith("-") or not word.strip("-"):
            values += 1
            continue
        name, _, value = word.partition("=")
        if name not in options:
            return f"no option {name}; there are {', '.join(n for n in options if n.startswith('-'))}"
        seen.add(options[name].name)
        if not options[name].is_flag and not value and next(words, "--").startswith("--"):
            return f"{name} lacks its value"
    arguments = [param for param in found.params if param.param_type_name == "argument"]
    if values > len(arguments) and not any(param.nargs == -1 for param in arguments):
        return f"{values} arguments, and it takes {len(arguments)}"
    if whole:
        needed = [p for p in found.params if p.required and not p.envvar and p.param_type_name == "option"]
        if lacking := [param.opts[0] for param in needed if param.name not in seen]:
            return f"lacks {', '.join(lacking)}"
        if values < sum(param.required for param in arguments):
            return f"lacks {', '.join(param.name.upper() for param in arguments[values:])}"
    return ""


def names_in(path: Path) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def places_of(guide: Path, path: str) -> list[Path]:
    """Where a guide's path may lie: from the root, beside the guide, or, of a bare name, anywhere."""
    places = [place for folder in (ROOT, guide.parent) for place in folder.glob(path)]
    if not places and "/" not in path:
        places = [place for top in TOPS for place in (ROOT / top).rglob(path)]
    return places


@every_guide
def test_each_command_of_a_block_can_be_typed_as_it_stands(guide: Path) -> None:
    lines = [line.strip() for block in blocks(guide) for line in block.replace("\\\n", " ").splitlines()]
    faults = {line: fault_of(line, whole=True) for line in lines if re.match(r"datasites\s", line)}
    assert {line: fault for line, fault in faults.items() if fault} == {}


@every_guide
def test_each_command_within_a_sentence_exists_with_its_options(guide: Path) -> None:
    faults = {said: fault_of(said, whole=False) for said in spans(guide) if re.match(r"datasites\s", said)}
    assert {said: fault for said, fault in faults.items() if fault} == {}


@every_guide
def test_each_script_of_a_block_exists(guide: Path) -> None:
    called = [found for block in blocks(guide) for found in re.findall(r"^(?:python|bash) (scripts/\S+)", block, re.M)]
    assert [path for path in called if not (ROOT / path).is_file()] == []


@every_guide
def test_each_path_that_a_guide_names_exists(guide: Path) -> None:
    lost = []
    for said in {said.rstrip("/") for said in spans(guide)}:
        found = PATH.fullmatch(said)
        if found is None:
            continue
        path, name = found["path"], found["name"]
        if path.partition("/")[0] not in TOPS and not (path.endswith(ENDINGS) and path not in ENDINGS):
            continue
        places = places_of(guide, path)
        if not places or (name and not any(name in names_in(place) for place in places if place.suffix == ".py")):
            lost.append(said)
    assert sorted(lost) == []


@every_guide
def test_each_link_of_a_guide_works(guide: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(guide.read_text()) if "://" not in target]
    assert [target for target in targets if target and not (guide.parent / target).exists()] == []


def test_each_picture_is_in_a_guide() -> None:
    shown = {(guide.parent / link).resolve() for guide in GUIDES for link in LINK.findall(guide.read_text())}
    pictures = {path for top in TOPS for path in (ROOT / top).rglob("*.png")}
    assert pictures - shown == set()


def test_readme_is_short_and_names_each_guide() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_README
    named = {(ROOT / target).resolve() for target in LINK.findall(text)}
    assert set(GUIDES) - {README} - named == set()


def test_the_picture_has_each_room_and_no_other() -> None:
    picture = re.search(r"^## Layout\n+```\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert picture is not None
    drawn = {indent: re.findall(rf"^ {{{indent}}}([\w]+)/ ", picture[1], re.MULTILINE) for indent in (0, 2, 4)}
    assert set(drawn[2]) == set(MAY_IMPORT) - {"policies"}
    assert tuple(drawn[4]) == HOSPITAL_ROOMS
    assert {name for name in drawn[0] if not (ROOT / name).is_dir()} == set()


@every_guide
def test_each_call_of_a_researcher_is_there(guide: Path) -> None:
    """Of federation, run, study and report, in programs and in sentences; and what programs import."""
    programs = [text for language, text in BLOCK.findall(guide.read_text()) if language == "python"]
    called = set(re.findall(rf"\b({'|'.join(RESEARCHERS)})\.(\w+)\(", "\n".join([*programs, *spans(guide)])))
    assert {(what, name) for what, name in called if not _is_there(RESEARCHERS[what], name)} == set()
    for program in programs:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("datasites"):
                module = importlib.import_module(node.module or "")
                assert all(_holds(module, alias.name) for alias in node.names)


def _is_there(where: str, name: str) -> bool:
    path, _, owner = where.partition("::")
    return (f"{owner}.{name}" if owner else name) in names_in(ROOT / path)


def _holds(module: ModuleType, name: str) -> bool:
    """Whether a name can be imported; where a module says what it holds, nothing is loaded for it."""
    files = (Path(folder) / f"{name}.py" for folder in getattr(module, "__path__", ()))
    return name in getattr(module, "__all__", ()) or any(file.is_file() for file in files) or hasattr(module, name)


def test_the_settings_of_the_hospitals_guide_can_be_read(tmp_path: Path) -> None:
    guide = (ROOT / "datasites" / "hospital" / "README.md").read_text()
    settings = [text for language, text in BLOCK.findall(guide) if language == "toml"]
    assert len(settings) == 2
    (tmp_path / "datasite.toml").write_text("\n".join(settings))
    read = read_toml(tmp_path / "datasite.toml", DatasiteSettings)
    assert read.datasets[0].declared_records == 303
    assert read.console.oidc is not None


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("datasites review approve CASE --hash HASH --as NAME --reason WHY", ""),
        ("datasites review approve CASE --hash HASH --as NAME", "lacks --reason"),
        ("datasites review approve --hash HASH --as NAME --reason WHY", "lacks CASE"),
        ("datasites review approve 1 2 --hash HASH --as NAME --reason WHY", "2 arguments, and it takes 1"),
        ("datasites review show CASE --loud", "no option --loud"),
        ("datasites review show CASE --home", "--home lacks its value"),
        ("datasites review allow CASE", "no command 'allow'"),
        ("datasites review", "names a group"),
    ],
)
def test_a_wrong_line_is_seen(line: str, fault: str) -> None:
    found = fault_of(line, whole=True)
    assert found.startswith(fault) if fault else not found
