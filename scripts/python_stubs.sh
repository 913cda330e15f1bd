#!/usr/bin/env bash
# Generates the messages and stubs of python/ from proto/. With `check` it only says whether they are as committed.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
lock_cache
interpreter="$(environment client)"
unlock_cache
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

PATH="$(dirname "$interpreter"):$PATH" "$interpreter" -m grpc_tools.protoc --proto_path="$root/proto" \
  --python_out="$work" --grpc_python_out="$work" --mypy_out="quiet:$work" --mypy_grpc_out="quiet:$work" \
  "$root"/proto/llm_surgeon/v1/*.proto
touch "$work/llm_surgeon/v1/__init__.py"

committed="$root/python/llm_surgeon/v1"
if [ "${1:-}" = check ]; then
  diff -r --exclude=__pycache__ "$work/llm_surgeon/v1" "$committed" >/dev/null \
    || die "python/llm_surgeon/v1 is not what proto/ gives" "run scripts/python_stubs.sh and commit the result"
  say "python/llm_surgeon/v1 is what proto/ gives"
else
  rm -rf "$committed"
  cp -r "$work/llm_surgeon/v1" "$committed"
  say "written: python/llm_surgeon/v1"
fi
