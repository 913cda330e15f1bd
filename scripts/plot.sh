#!/usr/bin/env bash
# Runs a script in the environment of numpy and matplotlib: `plot.sh quality_plot.py`, `plot.sh quality_glassllm.py ARGUMENTS`.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

lock_cache
interpreter="$(environment plot)"
unlock_cache
PYTHONDONTWRITEBYTECODE=1 exec "$interpreter" "$scripts/$1" "${@:2}"
