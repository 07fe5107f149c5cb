"""Which tests wait for processes, threads, files or clocks: seen in what their code names, so that no list goes stale.

A test waits if its function, a fixture of it, or a function or class of these tests' own that one of them names, names
a module of `MODULES`, a fork, or something of `PRODUCT`. What can't be seen so bears `pytest.mark.waits` in its module.
Not meant: the date of today, which no busy machine changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

#: Modules that start processes or threads, sleep, or read the clock by which one waits.
MODULES = frozenset({"concurrent", "multiprocessing", "select", "signal", "subprocess", "threading", "time"})
#: How tests name what does so in the product: sandboxed workers, work on rows, studies, services, runs, waiting.
PRODUCT = frozenset(
    {"Worker", "start_worker", "admit", "admit_again", "Sandbox", "RowWork", "StudyRun", "Datasite", "serve_until"}
    | {"Run", "Running", "wait", "Apart", "TableReader"}
)
#: A fixture that starts a process once in a whole run, long before most of those that look at what came of it.
ONCE = frozenset({"examined"})
#: Where helpers of tests live, whose code is looked into.
OURS = tuple(f"{Path(__file__).resolve().parents[1] / folder}/" for folder in ("tests", "scripts"))


def mark_waiting(items: list[pytest.Item]) -> None:
    """Mark all that wait."""
    for item in items:
        if isinstance(item, pytest.Function) and any(map(waits, (item.function, *_fixtures(item)))):
            item.add_marker(pytest.mark.waits)


@functools.cache
def waits(thing: Any) -> bool:
    """Whether this function or class waits, or names one of these tests' own that does."""
    return _waits(thing, set())


def _fixtures(item: pytest.Function) -> Iterator[Any]:
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():
        if name not in ONCE:
            yield definitions[-1].func


def _waits(thing: Any, seen: set[int]) -> bool:
    if isinstance(thing, type):
        return any(_waits(part, seen) for part in (*vars(thing).values(), *thing.__bases__))
    function = _function(thing)
    if function is None or id(function) in seen or not function.__code__.co_filename.startswith(OURS):
        return False
    seen.add(id(function))
    names = set(_names(function.__code__))
    if names & PRODUCT or {"os", "fork"} <= names:
        return True
    known = function.__globals__
    return any(_room(known.get(name), name) in MODULES or _waits(known.get(name), seen) for name in names)


def _room(named: Any, name: str) -> str:
    """The outermost module of what a name stands for; the name itself where it is imported on the spot."""
    module = named.__name__ if isinstance(named, ModuleType) else getattr(named, "__module__", None)
    return (module or name).split(".")[0]


def _function(thing: Any) -> FunctionType | None:
    """What a function, method, property, context manager or property-based test runs."""
    if isinstance(thing, FunctionType) and hasattr(thing, "hypothesis"):
        thing = thing.hypothesis.inner_test
    for inside in ("__func__", "fget", "__wrapped__"):
        thing = getattr(thing, inside, thing)
    return thing if isinstance(thing, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
