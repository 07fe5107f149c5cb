"""Imports PySyft's notebook tables without IPython: each module of this room that imports PySyft imports this before.

A datasite shows nothing in a notebook, and IPython takes time and memory of each process. While PySyft's tables are
imported, `IPython.display` is a stand-in with the names in `TAKEN`; a PySyft that takes others fails at once. It is
removed again, so whoever imports IPython later gets the real one; what PySyft has imported passes calls on to that.
Where IPython is loaded already, as in a notebook, PySyft imports from it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

#: What PySyft's tables take from `IPython.display` when they are imported.
TAKEN = ("HTML", "display")
_STOOD_IN = ("IPython", "IPython.display")


@contextmanager
def _stand_in() -> Iterator[None]:
    if "IPython" in sys.modules:
        yield
        return
    package, display = (ModuleType(name, __doc__) for name in _STOOD_IN)
    for name in TAKEN:
        setattr(display, name, _handing_on(name))
    sys.modules.update(zip(_STOOD_IN, (package, display), strict=True))
    try:
        yield
    finally:
        for name in _STOOD_IN:
            del sys.modules[name]


def _handing_on(name: str) -> Callable[..., Any]:
    def handed_on(*values: Any, **options: Any) -> Any:
        return getattr(importlib.import_module("IPython.display"), name)(*values, **options)

    return handed_on


with _stand_in():
    importlib.import_module("syft_notebook_ui.tabulator")
