#!/usr/bin/env bash
# The fault suite on real processes, and its figures: which faults were put in how often, and what became of them. A fault
# counts once its test has seen that the run ended in the digest of an undisturbed one, or in the error that is due.
#
#   scripts/faults.sh [FILTER]    all tests that put faults in (a quarter of an hour), or those whose names contain FILTER
#   E2E_SEED=7                    other random cuts and refusals
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

cd "$root"
LLM_SURGEON_FAULTS="$(mktemp)"
export LLM_SURGEON_FAULTS
trap 'rm -f "$LLM_SURGEON_FAULTS"' EXIT

suites=()
for name in artifacts disk_full faults kill processes s3; do suites+=(--test "$name"); done
failed=0
# One after the other: each takes every core, and some wait for times to run out. Of the workspace, so that what `make build-tests` has
# built is taken and nothing else is.
"${CARGO:-cargo}" test --release --workspace "${suites[@]}" --no-fail-fast -- --test-threads=1 "$@" || failed=$?

sum() { # sum FATE: how many faults ended so
  awk -F '\t' -v fate="$1" '$2 == fate { n += $1 } END { print n + 0 }' "$LLM_SURGEON_FAULTS"
}
printf '\n%9s  %-9s %s\n' faults "" what
sort -t $'\t' -k 3 "$LLM_SURGEON_FAULTS" | awk -F '\t' '{ printf "%9d  %-9s %s\n", $1, $2, $3 }'
printf '%9d  survived, %d refused, %d told; bytes lost: 0\n' "$(sum survived)" "$(sum refused)" "$(sum told)"
[ "$failed" -eq 0 ] || die "some tests failed: their faults are not in the table" "their output is above"
