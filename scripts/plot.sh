#!/usr/bin/env bash
# Draws a figure of docs/ with matplotlib: `plot.sh quality_plot.py`.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

lock_cache
interpreter="$(environment plot)"
unlock_cache
exec "$interpreter" "$scripts/$1"
