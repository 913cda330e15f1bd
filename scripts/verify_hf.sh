#!/usr/bin/env bash
# Compares the perplexity that llm-surgeon measures with that of transformers and torch, folder by folder (verify_hf.py).
#
#   verify_hf.sh FOLDER...
#   DATA=DIR SEQ_LEN=512 SAMPLES=12   what to measure on; default: the held-out State of the Union addresses
#   GOLDEN_PYTHON=PATH                an interpreter that has scripts/requirements/golden.txt; default: one in the cache
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

[ $# -gt 0 ] || die "name the model folders to compare"
binary="$("$scripts/binary.sh")"
data="${DATA:-}"
if [ -z "$data" ]; then
  "$scripts/demo_data.sh"
  data="$cache/sotu/heldout"
fi
interpreter="${GOLDEN_PYTHON:-}"
if [ -z "$interpreter" ]; then
  lock_cache
  interpreter="$(environment golden)"
  unlock_cache
fi
for folder in "$@"; do
  ours="$("$binary" eval "$folder" --data "$data" --seq-len "${SEQ_LEN:-512}" --samples "${SAMPLES:-12}" --device cpu --quiet --json)"
  PYTHONDONTWRITEBYTECODE=1 "$interpreter" "$scripts/verify_hf.py" "$folder" "$data" "$ours"
done
