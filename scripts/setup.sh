# Sourced by demo.sh and test.sh: makes the virtual environment (VENV, default .venv at the root) and installs into it
# what EXTRAS names, in the versions of constraints.txt. Installs again only when pyproject.toml, those versions, EXTRAS
# or the Python version changed since the last time.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
VENV="${VENV:-$root/.venv}"

if [ ! -x "$VENV/bin/python" ]; then
  python="$(command -v python3.11 || command -v python3 || true)"
  [ -n "$python" ] || { echo "setup: no python3 found; install Python 3.11 or newer with venv" >&2; exit 2; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version) is too old; install Python 3.11 or newer" >&2; exit 2; }
  [ -e "$VENV" ] && made="" || made="$VENV"
  "$python" -m venv "$VENV" || {
    # A half-made one has a bin/python and no pip: the next run would take it for an environment.
    [ -z "$made" ] || rm -rf "$made"
    echo "setup: $python has no venv; install it (Debian: python3-venv) or set VENV to an environment" >&2; exit 2; }
fi

stamp="$VENV/.datasites-setup-$EXTRAS"
wanted="$("$VENV/bin/python" --version) $(cat pyproject.toml scripts/constraints.txt | cksum) $root"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "setup: installing into $VENV (the first time downloads about 300 MB)"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".[$EXTRAS]"
  echo "$wanted" > "$stamp"
fi
# Each hospital, worker and command is a process, which then reads this and compiles nothing, whatever the environment
# says of bytecode. Where this tree can't be written to, they compile.
"$VENV/bin/python" -m compileall -qq datasites policies || true
export PATH="$VENV/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
