#!/usr/bin/env bash
# Measures the stages against their floors on this machine and writes docs/performance.md (`make bench`).
#
#   (a) the sweep against the same operations as plain matrix products, in the same run
#   (b) the Cholesky stage likewise, and the path and update of one FFN layer
#   (c) a whole one-shot prune: time of each stage, bytes moved, peak memory
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

samples=${BENCH_SAMPLES:-16}
tokens=${BENCH_TOKENS:-512}
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
cd "$root"

sweep=(cargo run --release --quiet -p model --example sweep_floor -- blocks=30 "samples=8" "tokens=$tokens" repeat=3)
path=(cargo run --release --quiet -p pruning --example path_time -- 1536 576)
prune=("$(scripts/binary.sh)" prune "$cache/models/SmolLM2-135M-Instruct" --data "$cache/sotu/calibration"
  --eval-data "$cache/sotu/heldout" --target-size 0.8 --shots 1 --samples "$samples" --seq-len "$tokens" --out "$out/pruned")

"${sweep[@]}" | tee "$out/sweep.txt"
"${path[@]}" | tee "$out/path.txt"
"${prune[@]}" 2>"$out/progress.txt" | tee "$out/prune.txt" || { cat "$out/progress.txt" >&2; exit 1; }

{
  echo "# Performance"
  echo
  echo "Written by \`make bench\`; figures of one machine on one day. Read ratios, not seconds."
  echo
  echo "Machine: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)."
  for part in "The sweep against its floor (random weights of SmolLM2's shape):sweep" \
    "Cholesky stage, path and update of one layer, C = 1536, R = 576:path" \
    "One shot of SmolLM2-135M, $samples × $tokens tokens:prune"; do
    echo
    echo "## ${part%:*}"
    echo
    echo '```'
    sed -e "s#$out#OUT#g" "$out/${part##*:}.txt"
    echo '```'
  done
  [ ! -f docs/performance-notes.md ] || { echo; cat docs/performance-notes.md; }
} >docs/performance.md
echo "written: docs/performance.md" >&2
