"""Runs commands of `datasites` and says which modules each has loaded; by itself it loads the standard library alone.

Reads a list of groups of [command line, password] as JSON, and writes for each command its exit code, what it printed
and the modules that are loaded after it. Each group is run in one process, forked from this one: what all of a group
may do without needs to be looked at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import Any


def run(line: list[str], password: str) -> dict[str, Any]:
    """Run one command in this process."""
    said = io.StringIO()
    sys.argv, sys.stdin, code = ["datasites", *line], io.StringIO(f"{password}\n"), 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            from datasites.cli import main

            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Exception:
            code = -1
            traceback.print_exc()
    return {"line": line, "code": code, "said": said.getvalue(), "modules": sorted(sys.modules)}


def main() -> None:
    """Command line."""
    for group in json.load(sys.stdin):
        sys.stdout.flush()
        if not (child := os.fork()):
            out = os.fdopen(os.dup(1), "w")
            for line, password in group:
                print(json.dumps(run(line, password)), file=out, flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
