"""Checks a `model.py` without running it: default-deny over its whole syntax tree.

Everything that is not known to be harmless is a finding with rule, line, reason and the usual way to write it. A model
may import torch, torch.nn, torch.nn.functional and math; define classes on nn.Module, functions and constants; write
`self.x` in `__init__` only. There is no way left to name a file, a builtin, a dunder, a hook or another module's
attribute, to keep anything from one call to the next, or to branch on what is in a row.

Each name has one meaning in the whole file (imports, definitions and allowed builtins can't be rebound or shadowed):
that is what lets a static check know what a call reaches.

What it can't see is how tensors are shaped at run time. It refuses mixing of rows that shows in the text
(`check_rows`); the independence probe of the trainer is there for the rest. The verdict for a text is the same on
Python 3.11 to 3.13, and `RULESET` changes whenever a verdict might. Standard library only; executes nothing.

Code is ASCII. Comments and docstrings, which nothing runs, may hold letters of any script; what is invisible, turns
text around or is newer than Unicode 3.2 (which all Pythons know alike) is refused there too.
"""

from __future__ import annotations

import ast
import re
import string
import unicodedata
import warnings
from collections.abc import Iterator
from typing import TypeGuard

from datasites.enclave import allowed_names, check_statements
from datasites.enclave.check_expressions import constant_fits
from datasites.enclave.findings import CodeFinding, FindingList
from datasites.enclave.scope import FileNames, collect

RULESET = "5"

MAX_BYTES = 64 * 1024
MAX_LINES = 2000
MAX_LINE = 400
MAX_NODES = 20_000
MAX_DEPTH = 60
_ENTRY = "build_model"
#: A comment, a string with its prefix, a string that does not end, or a word. Without possessive quantifiers, which
#: Python 3.11.2 gets wrong; the alternatives exclude each other, so that nothing is tried twice. Whoever meets a string
#: that does not end reads no further, since each later quote would be followed to the end of the file.
_TOKEN = re.compile(
    r"""\#[^\n]*
    | (?P<prefix>\w*) (?P<three>\"{3}|'{3}) (?:\\.|(?!(?P=three))[^\\])* (?P=three)
    | (?P<unended_text>\w*) (?P<open_text>\"{3}|'{3})
    | (?P<one_line>\w*) (?P<one>["']) (?:\\.|(?!(?P=one))[^\\\n])* (?P=one)
    | (?P<unended>\w*) (?P<open>["'])
    | \w+""",
    re.VERBOSE | re.DOTALL,
)
_FORMATTING = frozenset({"f", "fr", "rf"})
_CHARACTERS = frozenset(string.printable) - set("\x0b\x0c")
#: Kinds of characters that people write words with, and one that is drawn over the one before.
_WRITTEN, _MARK = frozenset("LMNPS"), "M"
#: Of these kinds, those that nobody sees: fillers, a blank of braille, joiners, vowels without a sign, selectors.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u2800\u3164\uffa0\U0001d159"
    + "".join(map(chr, range(0xFE00, 0xFE10)))
)
MAX_MARKS = 4

__all__ = ["RULESET", "CodeFinding", "check_source"]


def check_source(source: str, filename: str = "model.py") -> tuple[CodeFinding, ...]:
    """Return all findings in `source`, ordered by line; empty when the code may run. Never raise on any text."""
    report = FindingList(filename)
    if not _fits(source, report):
        return report.findings()
    tree = _parse(source)
    if tree is not None:
        _names_and_texts_are_plain(tree, report)
    if tree is None:
        report.at(1, 0, "syntax", "this is not Python 3.11, or is nested too deeply", "run it with Python 3.11")
        return report.findings()
    names = collect(tree, report)
    _module(tree, names, report)
    _entry_points(tree, report)
    return report.findings()


def _fits(source: str, report: FindingList) -> bool:
    lines = source.split("\n")
    if len(source) > MAX_BYTES or len(lines) > MAX_LINES:
        report.at(1, 0, "size", f"more than {MAX_BYTES} characters or {MAX_LINES} lines", "remove what isn't used")
        return False
    before = len(report.findings())
    for number, line in enumerate(lines, 1):
        if len(line.rstrip("\r")) > MAX_LINE:
            report.at(number, MAX_LINE, "size", f"line of more than {MAX_LINE} characters", "break the line")
        if "\\N{" in line:
            report.at(number, line.index("\\N{"), "characters", "a character given by its name: the names depend "
                      "on the Python version", "write ASCII")  # fmt: skip
    for place in _odd(source):
        report.at(
            *_place(source, place), "characters",
            "a character outside plain ASCII: names could look alike, or a reviewer could see text reversed",
            "write ASCII; comments and docstrings may hold letters of any script",
        )  # fmt: skip
    for place in _formatted(source):
        report.at(*_place(source, place), "f-string", "an f-string calls methods of the values that it formats",
                  'join strings with +, as in "unknown: " + name')  # fmt: skip
    return len(report.findings()) == before


def _place(source: str, place: int) -> tuple[int, int]:
    """Return the line, from 1, and the column, from 0."""
    return source.count("\n", 0, place) + 1, place - source.rfind("\n", 0, place) - 1


def _odd(source: str) -> Iterator[int]:
    """Yield the first place in each line of a character that may not stand there."""
    in_text = bytearray(len(source))  # 1 inside a comment or a string, which may turn out to be a docstring
    for found in _TOKEN.finditer(source):
        prefix = found["prefix"] or found["one_line"] or ""
        if found[0].startswith("#") or (found["three"] or found["one"]):
            in_text[found.start() + len(prefix) : found.end()] = b"\1" * (len(found[0]) - len(prefix))
        if found["open_text"] or found["open"]:
            break
    line, marks = 0, 0
    for place, character in enumerate(source):
        # Of an old Unicode, so that all Pythons say the same of a character.
        kind = unicodedata.ucd_3_2_0.category(character)[0]
        marks = marks + 1 if kind == _MARK else 0
        fits = (
            character in _CHARACTERS
            if character.isascii()
            else in_text[place] and kind in _WRITTEN and character not in _UNSEEN
        )
        if character == "\r":
            fits = source.startswith("\n", place + 1) or place + 1 == len(source)
        if (not fits or marks > MAX_MARKS) and line <= place:
            yield place
            line = source.find("\n", place) + 1 or len(source)


def _names_and_texts_are_plain(tree: ast.Module, report: FindingList) -> None:
    """Letters of other scripts may stand in docstrings, and in no name or text that the code works with."""
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(node.body[0].value) for node in owners if node.body and _is_docstring(node.body[0])}
    for node in ast.walk(tree):
        texts = [text for _, text in ast.iter_fields(node) if isinstance(text, str)]
        if not all(text.isascii() for text in texts) and id(node) not in docstrings:
            report.node(
                node, "characters", "a name or text outside plain ASCII that the code works with",
                "write ASCII; comments and docstrings may hold letters of any script",
            )  # fmt: skip


def _formatted(source: str) -> Iterator[int]:
    """Yield where f-strings begin, by the text: before parsing, as what may stand in one differs between Pythons."""
    for found in _TOKEN.finditer(source):
        prefixes = (found[name] for name in ("prefix", "unended_text", "one_line", "unended"))
        if next(filter(None, prefixes), "").lower() in _FORMATTING:
            yield found.start()
        if found["open_text"] or found["open"]:
            return  # no Python takes it, or only as part of an f-string


def _parse(source: str) -> ast.Module | None:
    """Return the tree, or None where some Python from 3.11 to 3.13 would not give one or it is too large to judge."""
    try:
        with warnings.catch_warnings():
            # Which escapes are warned about, and as what, differs between versions and is no concern here.
            warnings.simplefilter("ignore")
            tree = ast.parse(source, feature_version=(3, 11))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    level: list[ast.AST] = [tree]
    count = 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree if count <= MAX_NODES else None
    return None


def _module(tree: ast.Module, names: FileNames, report: FindingList) -> None:
    for place, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue  # `collect` has judged them.
        if isinstance(node, ast.FunctionDef):
            check_statements.check_function(node, names, report, owner=None)
        elif isinstance(node, ast.ClassDef):
            _class(node, names, report)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            _constant(node, names, report)
        elif not (place == 0 and _is_docstring(node)):
            report.node(
                node, "module-level", f"{type(node).__name__} at module level: only imports, definitions and constants",
                "move it into a function",
            )  # fmt: skip


def _constant(node: ast.Assign | ast.AnnAssign, names: FileNames, report: FindingList) -> None:
    if isinstance(node, ast.AnnAssign):
        check_statements.check_annotation(node.annotation, names, report)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        if not isinstance(target, ast.Name):
            report.node(target, "constant", "a constant has a plain name", "write NAME = value")
        elif target.id.startswith("__"):
            report.node(target, "dunder", f"{target.id} has a meaning to Python", "choose another name")
    if node.value is not None and not is_immutable(node.value, names):
        report.node(
            node.value, "constant",
            "a constant must be a number, a string, None, a layer type, or a tuple of these: anything mutable could "
            "carry rows from one batch to the next",
            "use a tuple, or build it in __init__",
        )  # fmt: skip


def is_immutable(node: ast.expr, names: FileNames) -> bool:
    """Return whether an expression is a constant that nothing can change: numbers, strings, layer types, tuples."""
    if isinstance(node, ast.Constant):
        return constant_fits(node)
    if isinstance(node, ast.Tuple):
        return all(is_immutable(element, names) for element in node.elts)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and is_immutable(node.operand, names)
    if isinstance(node, ast.BinOp):
        arithmetic = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv)
        return arithmetic and _is_number(node.left, names) and _is_number(node.right, names)
    if isinstance(node, ast.Name):
        return node.id in names.constants
    if isinstance(node, ast.Attribute):
        return names.dotted(node) in {"math.pi", "math.e", "math.inf", "math.tau"} or names.is_layer(node)
    return False


def _is_number(node: ast.expr, names: FileNames) -> bool:
    # Not strings or tuples: "a" * n and () * n are memory, not arithmetic.
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    return not isinstance(node, ast.Tuple) and is_immutable(node, names)


def _class(node: ast.ClassDef, names: FileNames, report: FindingList) -> None:
    for decorator in node.decorator_list:
        report.node(decorator, "decorator", "a decorator runs code on the class", "leave it out")
    for keyword in node.keywords:
        report.node(keyword.value, "metaclass", "a class may have no keywords: a metaclass runs code", "leave it out")
    base_ok = len(node.bases) == 1 and (
        names.dotted(node.bases[0]) in allowed_names.BASES
        or (isinstance(node.bases[0], ast.Name) and node.bases[0].id in names.classes)
    )
    if not base_ok:
        report.node(node, "base", f"class {node.name} has a base other than nn.Module", "write class X(nn.Module)")
    for place, item in enumerate(node.body):
        if isinstance(item, ast.FunctionDef):
            _method_name(item, report)
            check_statements.check_function(item, names, report, owner=node.name)
        elif isinstance(item, ast.Assign | ast.AnnAssign):
            _constant(item, names, report)
            for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
                if isinstance(target, ast.Name) and target.id in allowed_names.RESERVED:
                    report.node(target, "override", f"{target.id} belongs to nn.Module", "choose another name")
        elif not (isinstance(item, ast.Pass) or (place == 0 and _is_docstring(item))):
            report.node(item, "class-body", f"{type(item).__name__} in a class: only methods and constants", "move it")


def _method_name(item: ast.FunctionDef, report: FindingList) -> None:
    if item.name in ("__init__", "forward"):
        return
    if item.name.startswith("__"):
        report.node(item, "dunder", f"{item.name} is called implicitly by Python", "use a plain method")
    elif item.name in allowed_names.RESERVED:
        report.node(item, "override", f"{item.name} belongs to nn.Module and the trainer relies on it", "rename it")


def _entry_points(tree: ast.Module, report: FindingList) -> None:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    build = functions.get(_ENTRY)
    if build is None:
        report.at(1, 0, "build-model", "build_model is missing", "define build_model(n_features, **config)")
    else:
        positional = [argument.arg for argument in (*build.args.posonlyargs, *build.args.args)]
        optional = len(build.args.defaults) >= len(positional) - 1
        named = all(default is not None for default in build.args.kw_defaults)
        right = positional[:1] == ["n_features"] and not build.args.posonlyargs and not build.args.vararg
        if not (right and optional and named):
            report.node(
                build, "build-model", "build_model must take n_features first, everything else as optional keywords",
                "write def build_model(n_features, **config)",
            )  # fmt: skip
    loss = functions.get("loss")
    if loss is not None:
        arguments = loss.args
        plain = not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults)
        if not plain or len(arguments.posonlyargs) + len(arguments.args) != 2:
            report.node(
                loss, "loss", "loss must take two arguments, logits and target", "write def loss(logits, target)"
            )


def _is_docstring(node: ast.stmt) -> TypeGuard[ast.Expr]:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
