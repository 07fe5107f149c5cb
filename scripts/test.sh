#!/usr/bin/env bash
# Sets up and passes the tests: linter, formatter, types, then fast tests, slow ones, and whole studies in processes of
# their own. With --all then those that take minutes as well. Other arguments go to pytest.
EXTRAS=dev
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Hospitals write to the disk before they answer, thousands of times in all tests: into memory, where there is enough.
if [ -z "${TMPDIR:-}" ] && [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 4194304 ] 2>/dev/null; then
  TMPDIR="$(mktemp -d /dev/shm/datasites-tests.XXXXXX)"
  chmod 1777 "$TMPDIR" && export TMPDIR   # as the folder in whose place it is
  trap 'rm -rf "$TMPDIR"' EXIT
fi
if [ "$#" -eq 0 ] || [ "$*" = "--all" ]; then
  ruff check .
  ruff format --check .
  mypy
  export PYTHONDONTWRITEBYTECODE=   # pytest keeps what it makes of each module of tests for the parts that follow
  cores="$(nproc)"
  several=(-n "$((cores < 4 ? cores + 1 : 4))" --dist loadfile)   # some tests wait while others compute
  python -m pytest "${several[@]}" -rs -m "not slow and not e2e and not long"
  python -m pytest "${several[@]}" -rs -m "slow and not e2e and not long"
  python -m pytest -n 2 --dist loadfile -rs -m "e2e and not long"
  [ "$#" -eq 0 ] || python -m pytest "${several[@]}" -rs -m long
  exit
fi
python -m pytest "$@"
