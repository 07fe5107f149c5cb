#!/usr/bin/env bash
# Sets up and passes the tests: linter, formatter, types, then fast tests, slow ones, and whole studies in processes of
# their own. With --all then those that take minutes as well. Other arguments go to pytest.
EXTRAS=dev
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "$#" -eq 0 ] || [ "$*" = "--all" ]; then
  ruff check .
  ruff format --check .
  mypy
  several=(-n auto --maxprocesses 4 --dist loadfile)
  python -m pytest "${several[@]}" -rs -m "not slow and not e2e and not long"
  python -m pytest "${several[@]}" -rs -m "slow and not e2e and not long"
  python -m pytest -rs -m "e2e and not long"
  [ "$#" -eq 0 ] || python -m pytest "${several[@]}" -rs -m long
  exit
fi
exec python -m pytest "$@"
