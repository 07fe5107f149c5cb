"""Lets a worker import the parts of opacus that it uses without the rest: accountants, and with them scipy.

To be imported before anything of opacus is, and only in a process that is a worker or its template.
"""

import importlib.util
import sys

if "opacus" not in sys.modules:
    _spec = importlib.util.find_spec("opacus")
    assert _spec is not None
    # As a package whose own file was not run, so that `import opacus.grad_sample` runs that part alone.
    sys.modules["opacus"] = importlib.util.module_from_spec(_spec)
