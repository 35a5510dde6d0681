# Sourced by the scripts beside it: finds Python, makes .venv, and defines `python`.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
venv=$root/.venv
lock_file=$root/.venv.lock
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PYTHONUTF8=1
[ -n "${HOME:-}" ] || export PIP_NO_CACHE_DIR=1 # without a home pip would put its cache below /

python() { "$venv/bin/python" "$@"; }

say() { printf '%s\n' "$*" >&2; }

# Prints the Python to build .venv with: `python3` when it is new enough, else a newer one beside it.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11 or newer with the venv module is needed (on Debian: apt-get install python3 python3-venv)."
  return 1
}

# take_lock PYTHON: waits for the lock on file descriptor 9, which this shell keeps until it closes it.
take_lock() { "$1" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; }

# setup FILE: makes .venv hold what the requirements file says. Safe from several shells at once.
setup() {
  local requirements=$1 base stamp wanted
  base=$(find_python)
  stamp=$venv/.installed-${requirements%.txt}
  wanted=$(fingerprint "$base" "$requirements")
  is_installed && return
  exec 9>"$lock_file"
  take_lock "$base"
  if ! is_installed; then
    say "Setting up .venv from $requirements with $("$base" --version) ..."
    make_venv
    python -m pip install --quiet --requirement "$requirements"
    printf '%s\n' "$wanted" >"$stamp"
  fi
  exec 9>&-
}

# Prints what decides whether .venv is current: the pins, the Python, and where the checkout lies.
fingerprint() {
  "$1" - "$root" "$2" <<'PYTHON'
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
pins = [(root / name).read_text() for name in sorted({"requirements.txt", sys.argv[2]})]
print(hashlib.sha256(repr([str(root), sys.version, *pins]).encode()).hexdigest())
PYTHON
}

is_installed() { [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && python -c '' 2>/dev/null; }

# Keeps a .venv of this place and Python, and replaces any other, or half of one.
make_venv() {
  local ask='import pip, sys; print(sys.version)'
  if [ "$(cat "$venv/.place" 2>/dev/null)" != "$root" ] ||
    [ "$(python -c "$ask" 2>/dev/null)" != "$("$base" -c 'import sys; print(sys.version)')" ]; then
    "$base" -m venv --clear "$venv"
    printf '%s\n' "$root" >"$venv/.place"
  fi
}
