"""Reads `datasites/INVARIANTS.md`, and finds what is wrong with it, with citations of its rules, and with words.

Pure: texts go in, faults in words come out; `test_house.py` gives it this repository and a few small wrong texts.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

#: How many rules there are.
RULES = 17
#: A rule's number, as code, tests and documents cite it.
NUMBER = re.compile(r"\bI([1-9][0-9]*)\b")
#: Codes of ICD-10 for diseases of the heart, some of which look the same: I10 is hypertension. A string of Python that
#: is nothing but one is data. A sentence or a document with one is not told from a citation; it can give the name.
CODE = re.compile(r"I[0-9]{2}(\.[0-9]{1,2})?")
#: References to a document that is not part of this repository.
ELSEWHERE = re.compile(r"\bdesign(\.md\b|,?\s+sections?\b)", re.IGNORECASE)

_HEADING = re.compile(r"^## I([1-9][0-9]*) (\S.*)$", re.MULTILINE)
_CITATION = re.compile(r"^- `([^`]+)::([^`]+)`(?:: \S.*)?$")

#: The text of a file by its path from the top of the repository; None where there is none.
Source = Callable[[str], str | None]
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Citation:
    """`path::name`: a function, class or `Class.method` of a Python file, or a rule of a Cedar file by its id."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}::{self.name}"


@dataclass(frozen=True)
class Invariant:
    """One rule, as it is written down. today: "" where all of it holds without more words."""

    number: int
    rule: str
    enforced: tuple[Citation, ...]
    attacked: tuple[Citation, ...]
    today: str


@functools.cache
def tree(code: str) -> ast.Module:
    """Parse Python, each text once: several tests look at the same files."""
    return ast.parse(code)


def read(text: str) -> list[Invariant]:
    """Read the rules in their order; raises `ValueError` for a section that has not the parts of one."""
    _, *parts = _HEADING.split(text)
    return [_section(int(number), body) for number, body in zip(parts[::3], parts[2::3], strict=True)]


def _section(number: int, body: str) -> Invariant:
    rule, found, rest = body.partition("\nEnforced in:\n")
    enforced, also_found, rest = rest.partition("\nAttacked by:\n")
    attacked, _, today = rest.partition("\nToday: ")
    if not (found and also_found and rule.strip()):
        raise ValueError(f"I{number}: a rule has a paragraph, `Enforced in:` and `Attacked by:`, in this order")
    return Invariant(number, rule.strip(), _citations(number, enforced), _citations(number, attacked), today.strip())


def _citations(number: int, lines: str) -> tuple[Citation, ...]:
    found = []
    for line in lines.strip().splitlines():
        match = _CITATION.match(line)
        if match is None:
            raise ValueError(f"I{number}: {line!r} is no citation; write - `path::name`, and words after a colon")
        found.append(Citation(*match.groups()))
    return tuple(found)


def faults(rules: Iterable[Invariant], source: Source) -> Iterator[str]:
    """Say what is missing: rules, citations, what is cited, and tests that name the rule which they attack."""
    rules = list(rules)
    if [rule.number for rule in rules] != list(range(1, RULES + 1)):
        yield f"the rules are not I1 to I{RULES}, each once and in order"
    for rule in rules:
        for what, cited in (("is enforced by nothing", rule.enforced), ("is attacked by no test", rule.attacked)):
            if not cited:
                yield f"I{rule.number} {what}"
            for citation in cited:
                if citation.name not in names(citation.path, source(citation.path)):
                    yield f"I{rule.number}: {citation} is not there"
        for citation in rule.attacked:
            if not re.fullmatch(r"tests/(\w+/)*test_\w+\.py::test_\w+", str(citation)):
                yield f"I{rule.number}: {citation} is no test"
        if rule.attacked and not any(_names_rule(rule.number, citation, source) for citation in rule.attacked):
            yield f"I{rule.number} is named by none of its tests, nor by the module of one"


def names(path: str, text: str | None) -> set[str]:
    """What a file defines, by the names that a citation may use; nothing of a file that is not there."""
    if text is None:
        return set()
    if path.endswith(".cedar"):
        return set(re.findall(r'^@id\("([^"]+)"\)', text, re.MULTILINE))
    found = set()
    for node in tree(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


def _names_rule(number: int, citation: Citation, source: Source) -> bool:
    """Whether the test, or the docstring of its module, names the rule."""
    text = source(citation.path)
    if text is None:
        return False
    module = tree(text)
    words = [ast.get_docstring(module) or ""]
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == citation.name:
            words.append(ast.get_source_segment(text, node) or "")
    return any(str(number) in NUMBER.findall(one) for one in words)


def cited(path: str, text: str) -> set[int]:
    """Find the numbers of rules that a file cites; of Python in comments and strings, where no name looks like one."""
    if path.endswith(".py") and NUMBER.search(text):
        with suppress(SyntaxError, tokenize.TokenError):  # models of tests are not all Python
            text = "\n".join(_comments(text) + [part for part, _ in _strings(text)])
    return {int(number) for number in NUMBER.findall(text)}


def _comments(code: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def _strings(code: str) -> Iterator[tuple[str, bool]]:
    """Each string of a module but codes, also within f-strings, and whether it stands alone, as a docstring does."""
    nodes = list(ast.walk(tree(code)))
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not CODE.fullmatch(node.value):
            yield node.value, id(node) in alone


def words_for_users(path: str, text: str, *, help_too: bool) -> list[str]:
    """What of a file its users may read: the lines of a page or a document, of Python its strings.

    help_too: docstrings as well, since they are shown as help.
    """
    if path.endswith(".ipynb"):  # the cells; pictures in their outputs are text of any letters
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    if not path.endswith(".py"):
        return [line for line in text.splitlines() if "INVARIANTS.md" not in line]  # who points there may say to what
    return [part for part, alone in _strings(text) if help_too or not alone]


def unfit_for_users(words: str) -> str:
    """The first number of a rule, or reference elsewhere, that these words hold; "" where there is none."""
    for found in NUMBER.finditer(words):
        if int(found[1]) <= RULES:
            return found[0]
    elsewhere = ELSEWHERE.search(words)
    return elsewhere[0] if elsewhere else ""
