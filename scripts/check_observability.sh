#!/usr/bin/env bash
# Dashboards, alerts and runbook against docs/telemetry.json, against each other, and against parsers and models that are not
# ours; also with faults put in. No service runs.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
command -v npm >/dev/null || die "npm is missing" "on Debian and Ubuntu: apt-get install npm"
lock_cache
interpreter="$(environment observability)"
unlock_cache
"$python" "$scripts/dashboards.py" --check
"$interpreter" -B "$scripts/observability_check" --require-promtool --npm "$cache/npm/observability" --self-test
