#!/usr/bin/env bash
# Makes testdata/{golden,pytorch_bin,bpe} again with transformers and torch. What it writes is committed: review the difference.
#
#   GOLDEN_PYTHON=PATH   an interpreter that has scripts/requirements/golden.txt; default: one in the cache
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

interpreter="${GOLDEN_PYTHON:-}"
if [ -z "$interpreter" ]; then
  lock_cache
  interpreter="$(environment golden)"
  unlock_cache
fi
cd "$root"
export PYTHONDONTWRITEBYTECODE=1
for script in make_golden make_pytorch_bin make_bpe; do
  "$interpreter" "testdata/$script.py"
done
