#!/usr/bin/env bash
# The Python client: its stubs are what proto/ gives, its types check, and it works with real services.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

"$scripts/python_stubs.sh" check
binary="$("$scripts/binary.sh")"
lock_cache
interpreter="$(environment client)"
unlock_cache
cd "$root/python"
"$interpreter" -m mypy --cache-dir=/dev/null
LLM_SURGEON_PROGRAMS="$(dirname "$binary")" LLM_SURGEON_TEST_MODEL="$cache/models/glassllm-en" \
  "$interpreter" -m pytest --quiet -p no:cacheprovider tests
