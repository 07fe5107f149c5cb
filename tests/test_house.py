"""The rules between rooms (README, "Layout"). Were one broken, a room could quietly know more than it may."""

import ast
import builtins
import functools
import graphlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasites.enclave.worker_client import Worker
from datasites.study.errors import DatasitesError
from tests import invariants, waiting
from tests.other_user import run_as_other_user
from tests.rooms import ASSEMBLES, HOSPITAL_ROOMS, MAY_IMPORT, ROOT

#: Modules at the top of `hospital` that rooms stand on, and what they may import of the rooms themselves.
STANDS_ON = {"site": {"datasites.hospital.audit.log"}}
#: Modules at the top of `hospital`.
MOST_AT_THE_TOP = 16
TORCH_ROOMS = {"privacy", "enclave"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "policies":
        return "policies"
    return parts[1].removesuffix(".py")


def sources() -> list[Path]:
    return sorted([*(ROOT / "datasites").rglob("*.py"), *(ROOT / "policies").rglob("*.py")])


def parsed(path: Path) -> ast.Module:
    return invariants.tree(path.read_text())


@functools.cache
def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(parsed(path)):
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


def test_hospital_has_few_modules_at_its_top_and_each_other_in_a_room() -> None:
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


@functools.cache
def _tree_of_errors() -> list[str]:
    """Each error of the tree as it is drawn in `study.errors`: indented below its base, and its module."""
    below: dict[str, list[tuple[str, Path]]] = {}
    for path in sources():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    below.setdefault(ast.unparse(base), []).append((node.name, path))

    def drawn(name: str, depth: int) -> Iterator[str]:
        for error, path in sorted(below.get(name, [])):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("datasites.")
            yield f"{'  ' * depth + error:<28}{module}".strip()
            yield from drawn(error, depth + 1)

    return list(drawn("DatasitesError", 1))


def test_the_tree_of_errors_is_drawn_where_it_is_defined() -> None:
    tree = _tree_of_errors()
    text = ast.get_docstring(parsed(ROOT / "datasites" / "study" / "errors.py"))
    assert text is not None
    assert [line.strip() for line in text.partition("  DatasitesError\n")[2].splitlines()] == tree
    names = [line.split()[0] for line in tree]
    assert len(names) == len(set(names)), "two errors of one name"


#: The rules of all errors, which are made of the names of their classes.
RULES_OF_ERRORS = [
    "accounts-differ", "already-answered", "already-masked", "already-said", "another-at-work", "answer-refused",
    "apart-failed", "audit-error", "bad-blob", "bad-envelope", "bad-frame", "bad-key", "bad-message", "bad-mock",
    "bad-signature", "bad-terms", "budget-exceeded", "budget-too-small", "code-refused", "commitments-gone",
    "control-error", "database-away", "database-refused", "denied", "dependent-rows", "entry-refused",
    "epoch-refused", "equivocation", "evaluation-error", "evidence-error", "frozen-copy-changed", "held",
    "identity-error", "incomplete", "input-error", "journal-damaged", "journal-rolled-back", "late-vector",
    "lost-keys", "may-not-run", "nobody-to-leave-out", "not-a-file", "not-a-survivor", "not-approved", "not-to-undo",
    "other-keys", "other-spellings", "out-of-order", "person-error", "plan-error", "policy-denied", "protocol-error",
    "refused", "registry-error", "rejected", "review-error", "ring-refused", "round-refused", "round-used",
    "rule-error", "run-error", "same-patients", "sandbox-unavailable", "schema-error", "secagg-error", "spent-state",
    "steps-exhausted", "store-denied", "store-error", "store-full", "store-missing", "store-unreachable",
    "template-ended", "template-error", "too-few", "too-large", "training-refused", "undelivered", "unknown-event",
    "unknown-party", "unopened", "unsupported-model", "worker-crashed", "worker-error", "worker-out-of-memory",
    "worker-refused", "worker-timeout", "wrong-bundle", "wrong-password", "wrong-share",
]  # fmt: skip


def test_the_rules_of_errors_stay_as_they_are() -> None:
    """By how each class is defined, since to import them all takes torch and a database."""
    names = {line.split()[0] for line in _tree_of_errors()}
    rules = {
        node.name: _own_rule(node) or vars(type(node.name, (DatasitesError,), {}))["rule"]
        for path in sources()
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and node.name in names
    }
    assert sorted(rules.values()) == RULES_OF_ERRORS, (
        "cases, logs and messages that are stored or were sent name an error by its rule, and people look for it: "
        "a class that is renamed keeps its old one (`rule = ...`); a new one is listed here"
    )


def _own_rule(error: ast.ClassDef) -> str | None:
    """The rule that the class gives, if it does."""
    for item in error.body:
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "rule":
            return str(ast.literal_eval(item.value))
    return None


@pytest.mark.parametrize(
    ("code", "rule"), [("class A(E):\n    rule = 'b'", "b"), ("class A(E):\n    public = 'b'", None)]
)
def test_a_rule_that_a_class_gives_is_found(code: str, rule: str | None) -> None:
    (error,) = ast.parse(code).body
    assert isinstance(error, ast.ClassDef)
    assert _own_rule(error) == rule


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_error_that_others_may_see_is_in_the_tree(path: Path) -> None:
    """But what ends a thread or a process, and what the verifier raises that stands alone."""
    apart, names = {"Halted", "Fault", "DatasitesError"}, {line.split()[0] for line in _tree_of_errors()}
    for node in parsed(path).body:
        if (
            isinstance(node, ast.ClassDef)
            and not node.name.startswith("_")
            and node.name not in apart | {"DatasitesError"}
        ):
            bases = {ast.unparse(base) for base in node.bases}
            builtin = {base for base in bases if isinstance(vars(builtins).get(base), type)}
            errors = {base for base in builtin if issubclass(vars(builtins)[base], BaseException)}
            assert not errors or bases & {"DatasitesError", *names}, (
                f"{path}: {node.name} stands beside the tree of errors"
            )


#: Functions of which each module may have one of its own: what a page or a command does is named as it is shown.
OF_PAGES_AND_COMMANDS = ("datasites/hospital/console/views/", "datasites/cli/")
VIEWS = "datasites.hospital.console.views."


#: Modules of pages and commands that show no room: how people come in, and what all commands share.
SHOW_NO_ROOM = {"entry", "terminal"}


def test_pages_and_commands_are_called_after_what_they_show() -> None:
    """A room of the hospital, or a module of it or in one: so names recur, and each leads to the other."""
    named = {name.rpartition(".")[2] for name in hospital_modules() if not name.startswith(VIEWS)}
    shown = {
        path.stem
        for top in OF_PAGES_AND_COMMANDS
        for path in (ROOT / top).glob("*.py")
        if path.stem.strip("_") == path.stem
    }
    assert shown - named == SHOW_NO_ROOM


def test_a_function_that_checks_a_signature_or_decides_is_the_only_one_of_its_name() -> None:
    """Five functions called `verify`, say, and a reader takes one for the other."""
    names = {"verify", "explain", "gather", "decide"}
    found: dict[str, list[str]] = {}
    for path in sources():
        if not str(path.relative_to(ROOT)).startswith(OF_PAGES_AND_COMMANDS):
            for node in parsed(path).body:
                if isinstance(node, ast.FunctionDef) and node.name in names:
                    found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


#: Names that several modules give a class at their top.
CLASSES_OF_ONE_NAME = {"Migration"}  # Django looks for it by that name in each file of `migrations`


def test_no_two_modules_define_a_class_of_one_name() -> None:
    """What a reader searches for is found in one place; `_Private` ones count as well."""
    where: dict[str, list[str]] = {}
    for path in sources():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    several = {name: paths for name, paths in where.items() if len(paths) > 1}
    assert several.keys() == CLASSES_OF_ONE_NAME, several


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


#: What a datasite's process, a command and the aggregator are made of, each after those that it stands on.
WITHOUT_TORCH = (
    "datasites.study.package",
    "datasites.privacy.plan",
    "datasites.privacy.accountant",
    "datasites.secagg.member",
    "datasites.secagg.aggregator",
    "datasites.transport.mailroom",
    "datasites.control.syft",
    "datasites.enclave.worker_client",
    "datasites.enclave.verifier",
    "datasites.hospital.service",
    "datasites.cli",
    "policies.engine",
)


def test_the_datasite_process_never_loads_torch(tmp_path: Path) -> None:
    """Submitted code meets torch only inside the sandbox; a datasite that loaded it could be reached through it."""
    (tmp_path / "datasite.toml").write_text('organisation = "A"\nemail = "a@a.example.org"\nstore = "store"\n')
    code = f"""
import importlib, sys
from pathlib import Path
from datasites.hospital.database import connect
connect(Path({str(tmp_path)!r}))
for module in {WITHOUT_TORCH!r}:
    importlib.import_module(module)
    for loaded in sys.modules.keys() & {{"torch", "opacus"}}:
        sys.exit(f"{{module}} loads {{loaded}}")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


#: Folders of tests that are not about one room.
ACROSS_ROOMS = {"adversarial", "e2e"}


def test_tests_lie_where_what_they_test_lies() -> None:
    """Each folder of tests is that of a room; in a room inside `hospital`, tests lie in that room's folder."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        room = ROOT / ("policies" if folder.parts == ("policies",) else "datasites" / folder)
        assert ACROSS_ROOMS & set(folder.parts) or room.is_dir(), f"{path} lies in no room's folder"


def test_no_module_of_tests_is_imported_by_another() -> None:
    """What several of them share lies in a conftest.py or in a module of helpers beside them."""
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in ("tests", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "hostile_models" not in path.parts  # some of which no Python parses
        for module in imported_modules(path)
        if module.startswith("tests.") and re.search(r"\btest_", module)
    ]
    assert found == []


#: Modules that a security review looks for first; the tests of each lie in a file of its name.
OF_WEIGHT = (
    "secagg/member",
    "secagg/aggregator",
    "aggregator/secure_sum",
    "aggregator/run",
    "aggregator/epochs",
    "aggregator/heads",
    "enclave/worker_process",
    "enclave/worker_client",
    "enclave/sandbox",
    "enclave/verifier",
    "privacy/trainer",
    "privacy/accountant",
    "hospital/audit/log",
    "hospital/budget/ledger",
    "hospital/cases/review",
    "hospital/cases/examination",
    "hospital/rounds/release",
    "hospital/rounds/run",
    "hospital/rounds/setup",
    "hospital/evidence/verify_bundle",
    "transport/mailroom",
    *(f"cli/{path.stem}" for path in (ROOT / "datasites/cli").glob("*.py") if not path.stem.startswith("_")),
)


@pytest.mark.parametrize("module", OF_WEIGHT)
def test_a_module_of_weight_has_tests_of_its_name(module: str) -> None:
    path = ROOT / "datasites" / module
    tests = ROOT / "tests" / path.relative_to(ROOT / "datasites").with_name(f"test_{path.name}.py")
    assert path.with_suffix(".py").is_file()
    assert tests.is_file(), f"{tests} is missing"


def test_the_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the list of shipped files is unknown")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"datasites", "notebooks", "policies", "scripts", "tests", "pyproject.toml", "README.md", "LICENSE"}
    assert {top for top in tops if not top.startswith(".")} <= allowed


INVARIANTS = ROOT / "datasites" / "INVARIANTS.md"
#: Files with words for people, or with citations, beside those of Python.
DOCUMENTS = {".md", ".html", ".cedar", ".cedarschema", ".toml", ".ipynb", ".sh"}


def texts(*tops: str) -> dict[str, str]:
    """Python files and documents below these folders, by their paths from here."""
    paths = (path for top in tops for path in sorted((ROOT / top).rglob("*")))
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths if path.suffix in {".py", *DOCUMENTS}}


def source(path: str) -> str | None:
    file = ROOT / path
    return file.read_text() if file.is_file() else None


def test_each_invariant_names_what_enforces_it_and_tests_that_name_it() -> None:
    assert list(invariants.faults(invariants.read(INVARIANTS.read_text()), source)) == []


def test_only_invariants_that_are_written_down_are_cited() -> None:
    written = {rule.number for rule in invariants.read(INVARIANTS.read_text())}
    everywhere = texts("datasites", "policies", "scripts", "tests", "notebooks") | {
        "README.md": (ROOT / "README.md").read_text()
    }
    unknown = {path: invariants.cited(path, text) - written for path, text in everywhere.items()}
    assert {path: numbers for path, numbers in unknown.items() if numbers} == {}


#: Everyday words that say nothing about what is held under them. `held` isn't one, since locks and descriptors are;
#: nor is `word`, which is what a cell without a number holds (`data/cells.py`).
PRIVATE_WORDS = {"made", "told", "gave", "said", "words", "alone", "leaving", "foreign", "inside", "gone", "try", "lie"}


#: Fields that are stored by such a name: in the state of a setup, and as a column of the journal of letters.
STORED_FIELDS = {"Reports.said", "SentMessage.said"}

#: Compounds that are plain English.
ORDINARY = re.compile(r"in_words|made_(up|by|of)")


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of all classes, functions, arguments, variables and imports; a field with its class before it."""
    fields = {
        id(target): owner.name
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for item in owner.body
        if isinstance(item, ast.AnnAssign | ast.Assign)
        for target in (item.targets if isinstance(item, ast.Assign) else [item.target])
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, f"{fields[id(node)]}.{node.id}" if id(node) in fields else node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname is not None:
            yield node.lineno, node.asname


def is_private(name: str) -> bool:
    """Whether this is one of the private words or a compound of one that isn't `ORDINARY`."""
    last = name.split(".")[-1]
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    return name not in STORED_FIELDS and bool(PRIVATE_WORDS & set(ORDINARY.sub("", split).split("_")))


def test_no_identifier_is_a_private_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for top in ("datasites", "policies")
        for path in sorted((ROOT / top).rglob("*.py"))
        for line, name in [(0, path.stem), *identifiers(parsed(path))]
        if is_private(name)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "def told(): ...",
        "def f(said): ...",
        "for made in (): ...",
        "self._alone = 1",
        "if words := 1: ...",
        "FOREIGN = 1",
        "class Words: ...",
        "import a.b as inside",
        "class Sent:\n    said: str",
        "class AlreadySaid: ...",
        "_foreign_heads = 1",
    ],
)
def test_a_private_word_is_found(code: str) -> None:
    assert any(is_private(name) for _, name in identifiers(ast.parse(code)))


def test_a_field_may_keep_the_name_that_it_is_stored_by() -> None:
    names = {
        name for path in sources() for _, name in identifiers(parsed(path)) if name.split(".")[-1] in PRIVATE_WORDS
    }
    assert names == STORED_FIELDS


def test_no_words_for_users_hold_the_number_of_an_invariant() -> None:
    """Nor anything else that they can't look up. Help of commands is made of docstrings."""
    shown = texts("datasites", "policies", "scripts", "notebooks", ".github") | {
        "README.md": (ROOT / "README.md").read_text()
    }
    del shown[str(INVARIANTS.relative_to(ROOT))]
    unfit = {}
    for path, text in shown.items():
        help_too = path.startswith(("datasites/cli/", "scripts/")) or "__doc__" in text
        for words in invariants.words_for_users(path, text, help_too=help_too):
            if found := invariants.unfit_for_users(words):
                unfit[path] = f"{found} in {words[:200]!r}"
    assert unfit == {}


def test_nothing_refers_to_a_document_that_is_not_here() -> None:
    found = {
        path: invariants.ELSEWHERE.search(text)
        for path, text in texts("datasites", "policies", "scripts", "tests").items()
    }
    assert [path for path, match in found.items() if match] == []


def _rules(**changes: str) -> list[invariants.Invariant]:
    """All rules in small; what the last of them says may be given."""
    lines = {"enforced": "- `a.py::f`", "attacked": "- `tests/test_a.py::test_f`: why", "today": ""} | changes
    usual = {
        "enforced": "- `a.py::A.g`: why\n- `a.cedar::r-1`",
        "attacked": "- `tests/test_a.py::test_f`",
        "today": "\nToday: no.",
    }
    return invariants.read(
        "# Rules\n\n"
        + "\n".join(
            f"## I{n} Some rule\n\nIt holds.\n\nEnforced in:\n\n{has['enforced']}\n\n"
            f"Attacked by:\n\n{has['attacked']}\n{has['today']}"
            for n, has in [(n, lines if n == invariants.RULES else usual) for n in range(1, invariants.RULES + 1)]
        )
    )


_FILES = {
    "a.py": "class A:\n    def g(self): pass\ndef f(): pass\n",
    "a.cedar": '@id("r-1")\nforbid (principal, action, resource);',
    "tests/test_a.py": f'"""{", ".join(f"I{n}" for n in range(1, invariants.RULES))}"""\n'
    f"def test_f():\n    # of I{invariants.RULES}\n    pass\ndef test_g(): pass\ndef help(): pass\n",
}


def test_rules_without_a_fault_have_none() -> None:
    rules = _rules()
    assert list(invariants.faults(rules, _FILES.get)) == []
    assert rules[0].enforced[1] == invariants.Citation("a.cedar", "r-1")
    assert [rules[0].rule, rules[0].today, rules[-1].today] == ["It holds.", "no.", ""]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enforced": "- `b.py::f`"}, "b.py::f is not there"),
        ({"enforced": "- `a.py::A.f`"}, "a.py::A.f is not there"),
        ({"enforced": "- `a.py::g`"}, "a.py::g is not there"),
        ({"enforced": "- `a.cedar::r`"}, "a.cedar::r is not there"),
        ({"enforced": ""}, "is enforced by nothing"),
        ({"attacked": ""}, "is attacked by no test"),
        ({"attacked": "- `tests/test_b.py::test_f`"}, "tests/test_b.py::test_f is not there"),
        ({"attacked": "- `tests/test_a.py::test_h`"}, "tests/test_a.py::test_h is not there"),
        ({"attacked": "- `tests/test_a.py::help`"}, "tests/test_a.py::help is no test"),
        ({"attacked": "- `a.py::f`"}, "a.py::f is no test"),
        ({"attacked": "- `tests/test_a.py::test_g`"}, "is named by none of its tests"),
    ],
)
def test_a_broken_citation_is_found(changes: dict[str, str], words: str) -> None:
    found = list(invariants.faults(_rules(**changes), _FILES.get))
    assert found
    assert all(one.startswith(f"I{invariants.RULES}") for one in found)
    assert any(words in one for one in found)


def test_a_rule_that_is_missing_or_has_no_parts_is_found() -> None:
    assert list(invariants.faults(_rules()[1:], _FILES.get)) == ["the rules are not I1 to I17, each once and in order"]
    for broken in ("- a.py::f", "`a.py::f`", "- `a.py`"):
        with pytest.raises(ValueError, match="is no citation"):
            _rules(enforced=broken)
    with pytest.raises(ValueError, match="a rule has a paragraph"):
        invariants.read("## I1 Some rule\n\nIt holds.\n\nAttacked by:\n\n- `tests/test_a.py::test_f`\n")


def test_citations_and_words_for_users_are_told_apart() -> None:
    number, other = f"I{7}", "design" + " section 9"
    code = f'"""Of {number}."""\n# {number}\nI3 = f"refused ({{1}}; {number})"\n'
    assert invariants.cited("a.py", code) == {7}
    assert invariants.cited("a.md", f"I{18} of I{1}") == {1, 18}
    assert invariants.words_for_users("a.py", code, help_too=False) == ["refused (", f"; {number})"]
    assert len(invariants.words_for_users("a.py", code, help_too=True)) == 3
    for code in ("I10", "I20.9"):
        assert invariants.words_for_users("a.py", f"code = '{code}'", help_too=True) == []
    assert invariants.unfit_for_users(f"refused ({number})") == number
    assert invariants.unfit_for_users(f"as {other}") == other[:-2]
    assert invariants.words_for_users("a.md", f"{number}\nINVARIANTS.md: I1", help_too=False) == [number]
    assert invariants.unfit_for_users(f"I 7, i7, II, I{18}, I{70}, AI7 and DESIGN") == ""


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
    starters = waiting.MODULES | {"datasites.enclave.worker_client.Worker", "tests.hospital.running.Running"}
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
