#!/usr/bin/env bash
# Puts rotel, an OpenTelemetry collector, into the cache, for the end-to-end tests.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
lock_cache
interpreter="$(environment rotel)"
unlock_cache
agent="$(find "$(dirname "$interpreter")/../lib" -name rotel-agent -type f)"
ln -sf "$agent" "$(dirname "$interpreter")/rotel-agent" # a package without a command of its own
say "ready: $(dirname "$interpreter")/rotel-agent"
