#!/usr/bin/env bash
# Runs buf on the contract under proto/, from the PyPI package buf-bin: `buf.sh lint`, `buf.sh breaking --against ...`.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

lock_cache
interpreter="$(environment lint)"
unlock_cache
cd "$root/proto"
exec "$(dirname "$interpreter")/buf" "$@"
