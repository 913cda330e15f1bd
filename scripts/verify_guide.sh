#!/usr/bin/env bash
# Runs the blocks of docs/take-it-from-here.md that are marked to be run, on a pruned SmolLM2.
#
#   GOLDEN_PYTHON=PATH   an interpreter that has scripts/requirements/golden.txt; default: one in the cache
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error

"$scripts/demo_model.sh" SmolLM2-135M-Instruct
"$scripts/demo_data.sh"
binary="$("$scripts/binary.sh")"
lock_cache
golden="${GOLDEN_PYTHON:-$(environment golden)}"
llama="$(environment gguf)"
unlock_cache
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
prune() {
  "$binary" prune "$cache/models/SmolLM2-135M-Instruct" --data "$cache/sotu/calibration" --samples 8 --seq-len 256 \
    --target-size 0.9 --quiet "$@" >/dev/null
}
prune --format both --gguf-type f32 --out "$work/SMALLER"
prune --shape per-layer --out "$work/PER_LAYER"

# block NAME: the Python of the block with that name.
block() { awk -v mark="<!-- run: $1 -->" '$0 == mark { found = 1; next } found && /^```/ { if (inside) exit; inside = 1; next } inside' "$root/docs/take-it-from-here.md"; }
cd "$work"
for name in transformers per-layer peft llama-cpp; do
  interpreter="$golden"
  [ "$name" != llama-cpp ] || interpreter="$llama"
  if [ "$name" = peft ] && ! "$golden" -c 'import peft' 2>/dev/null; then
    "$golden" -m pip install --quiet --target "$work/packages" --no-deps --requirement "$scripts/requirements/guide.txt"
    export PYTHONPATH="$work/packages"
  fi
  block "$name" >"block_$name.py"
  [ -s "block_$name.py" ] || die "docs/take-it-from-here.md has no block '$name'"
  "$interpreter" "block_$name.py" 2>"$name.log" || { cat "$name.log" >&2; die "the block '$name' does not run"; }
  say "$name runs"
done
[ -f TUNED/config.json ] || die "the block 'peft' wrote no TUNED"
"$binary" inspect TUNED >/dev/null || die "the tuned model is no model folder"
