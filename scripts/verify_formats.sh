#!/usr/bin/env bash
# Writes small models of every family in every shape and format and has the runtimes they are for run them (verify_formats.py).
#
#   verify_formats.sh hf      transformers + torch (4.3 GB of packages)
#   verify_formats.sh gguf    llama.cpp, built from its source package (about ten minutes on 2 cores, once)
#   GOLDEN_PYTHON=PATH        for hf: an interpreter that has scripts/requirements/golden.txt; default: one in the cache
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1

case "${1:-}" in
  hf) packages=golden ;;
  gguf) packages=gguf ;;
  *) die "say hf or gguf" ;;
esac
interpreter="${GOLDEN_PYTHON:-}"
if [ -z "$interpreter" ] || [ "$1" = gguf ]; then
  lock_cache
  interpreter="$(environment "$packages")"
  unlock_cache
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${CARGO:-cargo}" run --quiet --release -p model --example write_formats -- "$work"
"$interpreter" "$scripts/verify_formats.py" "$1" "$work"
