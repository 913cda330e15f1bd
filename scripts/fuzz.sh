#!/usr/bin/env bash
# Fuzzes whatever parses bytes from outside (fuzz/fuzz_targets): each target for so many seconds, then one line of what it
# ran and found. Ends with an error if one crashed, hung or took too much memory, and says which input does it.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]   default: 60 seconds of each target
#   CARGO_BUILD_JOBS=1                      where memory or cores are few: the first build takes long
#
# cargo-fuzz, builds, corpora and the inputs of crashes are in the cache, below fuzz/. A corpus grows from run to run; an
# input that has crashed once is run again every time.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

version=0.13.2
folder="$cache/fuzz"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}"
# The pinned toolchain is a stable one; the sanitizer and its coverage are flags that it takes only when told so.
export RUSTC_BOOTSTRAP=1
programs="$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release"
# What libtorch keeps for the whole process is no leak, and its libraries name some globals twice.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0
# An input of this length may not take longer or more than this.
limits=(-max_len=65536 -timeout=10 -rss_limit_mb=2048)

install_cargo_fuzz() {
  command -v cargo-fuzz >/dev/null && return 0
  export PATH="$cache/tools/bin:$PATH"
  [ ! -x "$cache/tools/bin/cargo-fuzz" ] || return 0
  lock_cache
  say "building cargo-fuzz $version into $cache/tools (once, a few minutes)"
  CARGO_TARGET_DIR="$cache/tools/target" cargo install --quiet --locked --root "$cache/tools" "cargo-fuzz@$version" \
    || die "cargo-fuzz $version could not be built" "is the crate registry reachable?"
  rm -rf "$cache/tools/target"
  unlock_cache
}

# last PATTERN FILE: what the last line of FILE that matches has in the pattern's group, or a dash.
last() {
  local found
  found="$(sed -nE "s/$1/\\1/p" "$2" | tail -n 1)"
  printf '%s' "${found:--}"
}

# fuzz_target TARGET SECONDS: runs it and prints its line; fails if it found something.
fuzz_target() {
  local target="$1" place="$folder/$1" status=0 log input
  log="$place/log"
  mkdir -p "$place/corpus" "$place/crashes"
  rm -rf "$place/seeds"
  mkdir "$place/seeds"
  LLM_SURGEON_SEEDS="$place/seeds" "$programs/$target" "${limits[@]}" -max_total_time="$2" -print_final_stats=1 \
    -artifact_prefix="$place/crashes/" "$place/corpus" "$place/seeds" "$place/crashes" >"$log" 2>&1 || status=$?
  printf '  %-16s %12s %10s %8s\n' "$target" "$(last 'stat::number_of_executed_units: *([0-9]+)' "$log")" \
    "$(last '.* cov: ([0-9]+) .*' "$log")" "$([ "$status" -eq 0 ] && echo none || echo FOUND)"
  [ "$status" -ne 0 ] || return 0
  input="$(last '.*Test unit written to (.*)' "$log")"
  printf '  %s\n' \
    "$(grep -m 1 -E 'panicked at|asked for|ERROR: (libFuzzer|AddressSanitizer)' "$log" || echo "it ended with status $status")" \
    "input: $input" "again: ASAN_OPTIONS=$ASAN_OPTIONS $programs/$target ${limits[*]} $input" "log:   $log" >&2
  return 1
}

main() {
  local seconds="${1:-60}" targets=() target found=()
  [[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "'$seconds' is no number of seconds" "scripts/fuzz.sh [SECONDS [TARGET...]]"
  shift || true
  [ -n "${LIBTORCH:-}" ] || [ -f "$root/.cargo/config.toml" ] || die "libtorch is not set up" "run: make setup"
  cd "$root"
  install_cargo_fuzz
  mapfile -t targets < <(cargo fuzz list)
  for target in "$@"; do
    [ -f "fuzz/fuzz_targets/$target.rs" ] || die "there is no target '$target'" "targets: ${targets[*]}"
  done
  [ $# -eq 0 ] || targets=("$@")
  say "building ${#targets[@]} targets (the first time everything under them, too: twenty minutes on two cores)"
  for target in "${targets[@]}"; do
    cargo fuzz build "$target" || die "target $target could not be built"
  done
  say "running each for $seconds seconds; logs, corpora and crashes in $folder"
  printf '  %-16s %12s %10s %8s\n' target executions coverage crashes
  for target in "${targets[@]}"; do
    fuzz_target "$target" "$seconds" || found+=("$target")
  done
  [ ${#found[@]} -eq 0 ] || die "something was found by: ${found[*]}"
}

main "$@"
