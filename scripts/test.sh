#!/usr/bin/env bash
# Sets up and passes the tests: linter, formatter, types, then fast tests before slow ones. Arguments go to pytest.
EXTRAS=dev
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "$#" -eq 0 ]; then
  ruff check .
  ruff format --check .
  mypy
  # Without capturing: a library that wraps the captured stream closes it when the wrapper is collected, in large runs.
  python -m pytest -s -m "not slow and not e2e"
  exec python -m pytest -s -m "slow or e2e"
fi
exec python -m pytest -s "$@"
