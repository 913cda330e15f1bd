#!/usr/bin/env bash
# Prints the path of the built llm-surgeon.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

target="${CARGO_TARGET_DIR:-$(sed -n 's/^target-dir = "\(.*\)"/\1/p' "$root/.cargo/config.toml" 2>/dev/null)}"
binary="${target:-$root/target}/release/llm-surgeon"
[ -x "$binary" ] || die "$binary is not built" "run: make build"
printf '%s\n' "$binary"
