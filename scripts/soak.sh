#!/usr/bin/env bash
# Many small runs through one coordinator while a thousand watch and strangers knock (`make soak`); see soak.py.
#
#   scripts/soak.sh [RUNS] [--watchers N] [--rate CALLS_A_SECOND] [--delete] [--keep FOLDER]      default: 200 runs
#
# LLM_SURGEON_PROGRAMS: the folder of the programs, if they are not those that were built here.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

programs="${LLM_SURGEON_PROGRAMS:-$(dirname "$("$scripts/binary.sh")")}"
model="$cache/models/glassllm-en"
[ -f "$model/config.json" ] || die "$model is missing" "run: make test-models"
lock_cache
interpreter="$(environment client)"
unlock_cache
PYTHONPATH="$root/python" exec nice -n 15 "$interpreter" "$scripts/soak.py" "$@" \
  --programs "$programs" --model "$model" --text "$root/testdata/text"
