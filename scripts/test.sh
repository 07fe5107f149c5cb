#!/usr/bin/env bash
# Sets up and passes the tests: linter, formatter, types, then fast tests before slow ones. Arguments go to pytest.
EXTRAS=dev
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "$#" -eq 0 ]; then
  ruff check .
  ruff format --check .
  mypy
  python -m pytest -n auto --maxprocesses 4 --dist loadfile -rs -m "not slow and not e2e"
  exec python -m pytest -rs -m "slow or e2e"
fi
exec python -m pytest "$@"
