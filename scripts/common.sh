# Sourced by the other scripts: where the cache is, messages, verified downloads, Python environments.
# shellcheck shell=bash
export LC_ALL=C PIP_DISABLE_PIP_VERSION_CHECK=1

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
scripts="$root/scripts"
cache="${LLM_SURGEON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llm-surgeon}"
case "$cache" in /*) ;; *) cache="$PWD/$cache" ;; esac
python="${PYTHON:-python3}"

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*"; }
die() {
  printf '%s: error: %s\n' "$(basename "$0" .sh)" "$1" >&2
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

# One script at a time writes to the cache; a second one waits. The lock ends with the script or with unlock_cache, which
# whoever goes on to something long must call: programs it starts would hold the lock as well.
lock_cache() {
  mkdir -p "$cache" || die "cannot create the cache folder $cache" "set LLM_SURGEON_CACHE to a folder you can write to"
  command -v flock >/dev/null || return 0
  exec 9>"$cache/.lock"
  flock -n 9 || { say "waiting for another set-up in $cache"; flock 9; }
}

unlock_cache() { exec 9>&-; }

# digest_of LIST NAME: the SHA-256 that scripts/LIST gives for NAME.
digest_of() {
  local digest
  digest="$(awk -v name="$2" '$2 == name { print $1 }' "$scripts/$1")"
  [ -n "$digest" ] || die "scripts/$1 has no digest of $2"
  printf '%s' "$digest"
}

# matches FILE DIGEST
matches() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]; }

# check_file FILE LIST NAME: FILE is what scripts/LIST says NAME is, or it is removed and the script ends.
check_file() {
  matches "$1" "$(digest_of "$2" "$3")" && return 0
  rm -f "$1"
  die "$3 is not the file that scripts/$2 describes (SHA-256 differs); it was removed" "try again; if it happens again, do not use the file"
}

# An interpreter with packages: environment NAME installs scripts/requirements/NAME.txt once and prints its Python's path.
environment() {
  local name="$1" requirements="$scripts/requirements/$1.txt" folder="$cache/venvs/$1" wanted
  wanted="$(cat "$requirements"; "$python" -c 'import sys; print(sys.version)')"
  if [ "$(cat "$folder/.complete" 2>/dev/null)" != "$wanted" ]; then
    say "installing the Python packages of scripts/requirements/$name.txt" >&2
    rm -rf "$folder"
    "$python" -m venv "$folder" >&2 || die "cannot create a Python environment in $folder" "on Debian and Ubuntu: apt-get install python3-venv"
    "$folder/bin/python" -m pip install --quiet --requirement "$requirements" >&2 \
      || die "pip could not install scripts/requirements/$name.txt" "is the package index (PyPI) reachable?"
    printf '%s\n' "$wanted" >"$folder/.complete"
  fi
  printf '%s' "$folder/bin/python"
}

# A bare pip, whatever the system's Python brings: prints the path of its interpreter.
pip_python() {
  local folder="$cache/venvs/pip"
  if [ ! -x "$folder/bin/pip" ]; then
    rm -rf "$folder"
    "$python" -m venv "$folder" >&2 || die "cannot create a Python environment in $folder" "on Debian and Ubuntu: apt-get install python3-venv"
  fi
  printf '%s' "$folder/bin/python"
}

# What pip is told to choose wheels for: CPython 3.11 on manylinux x86_64, whatever Python runs this, so that the files and
# their digests are always the same.
wheel_target=(--only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none --platform manylinux2014_x86_64)
for minor in $(seq 5 28); do
  wheel_target+=(--platform "manylinux_2_${minor}_x86_64")
done

# fetch_wheel LIST REQUIREMENT FILE: puts the verified wheel FILE of REQUIREMENT into $cache/wheels.
fetch_wheel() {
  local list="$1" requirement="$2" file="$3"
  if ! matches "$cache/wheels/$file" "$(digest_of "$list" "$file")"; then
    say "fetching $requirement"
    rm -f "$cache/wheels/$file"
    "$(pip_python)" -m pip download --quiet --no-deps --dest "$cache/wheels" "${wheel_target[@]}" "$requirement" \
      || die "pip could not fetch $requirement" "is the package index (PyPI) reachable, and is there room in $cache?"
    check_file "$cache/wheels/$file" "$list" "$file"
  fi
}

# debian_packages FOLDER PATTERN PACKAGE...: unpacks into FOLDER what apt would install for these packages as far as its name begins with
# PATTERN. Needs no root and leaves the system's packages alone; fails where apt has nothing.
debian_packages() {
  local folder="$1" pattern="$2" archives="$1/archives" options=(-o Dir::State::status=/dev/null -o APT::Sandbox::User=) list
  shift 2
  mkdir -p "$archives"
  if ! apt-cache show "$@" >/dev/null 2>&1; then
    # apt knows no packages yet: lists of our own, for the same sources.
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
    options+=(-o Dir::State="$folder/apt" -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache")
    apt-get "${options[@]}" --quiet --quiet update || return 1
  fi
  # As if nothing were installed, so that all that belongs to them comes, and nothing else.
  list="$(apt-get "${options[@]}" --simulate --no-install-recommends install "$@" \
    | awk -v pattern="^($pattern)" '$1 == "Inst" && $2 ~ pattern { print $2 }')" || return 1
  # shellcheck disable=SC2086 # one word a package
  (cd "$archives" && apt-get "${options[@]}" --quiet --quiet download $list) || return 1
  for archive in "$archives"/*.deb; do
    dpkg-deb --extract "$archive" "$folder" || return 1
  done
  rm -rf "$archives" "$folder/apt" "$folder"/usr/share/{doc,man,lintian}
}
