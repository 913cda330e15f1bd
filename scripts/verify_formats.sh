#!/usr/bin/env bash
# Writes small models of every family in every shape and format and has the runtimes they are for run them (verify_formats.py).
#
#   verify_formats.sh hf      transformers + torch (4.3 GB of packages)
#   verify_formats.sh gguf    llama.cpp, built from its source package (about ten minutes on 2 cores, once); then a pruned
#                             SmolLM2 in f32 must go on from a prompt as it does here, and in 8 bits it must speak
#   TRANSFORMERS=4.57.3       for hf: another release of transformers than that of scripts/requirements/golden.txt
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
if [ -n "${TRANSFORMERS:-}" ]; then
  other="$cache/transformers-$TRANSFORMERS"
  if [ ! -d "$other" ]; then
    say "installing transformers $TRANSFORMERS"
    "$interpreter" -m pip install --quiet --target "$other.part" "transformers==$TRANSFORMERS" \
      || die "pip could not install transformers $TRANSFORMERS" "is the package index (PyPI) reachable?"
    mv "$other.part" "$other"
  fi
  export PYTHONPATH="$other"
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${CARGO:-cargo}" build --quiet --release --workspace --example write_formats
"$(dirname "$("$scripts/binary.sh")")/examples/write_formats" "$work"
"$interpreter" "$scripts/verify_formats.py" "$1" "$work"
[ "$1" = gguf ] || exit 0

"$scripts/demo_model.sh" SmolLM2-135M-Instruct
"$scripts/demo_data.sh"
binary="$("$scripts/binary.sh")"
prompt="My fellow citizens, the state of the Union is"
"$binary" prune "$cache/models/SmolLM2-135M-Instruct" --data "$cache/sotu/calibration" --samples 8 --seq-len 256 --target-size 0.9 \
  --shape per-layer --format both --gguf-type f32 --keep-paths --quiet --out "$work/small" --state "$work/state" >/dev/null
"$binary" materialise "$work/state" --target-size 0.9 --format gguf --gguf-type q8_0 --quiet --out "$work/eight" >/dev/null
ours="$("$binary" generate "$work/small" --prompt "$prompt" --tokens 16 --quiet)"
theirs="$("$interpreter" "$scripts/verify_formats.py" say "$work/small/model.gguf" "$prompt" 16)"
"$interpreter" "$scripts/verify_formats.py" eight "$work/small/model.gguf" "$work/eight/model.gguf" "$work/own.gguf" 2>/dev/null
said() { "$interpreter" "$scripts/verify_formats.py" say "$1" "$prompt" 16 2>/dev/null; }
if ! eight="$(said "$work/eight/model.gguf")"; then
  said "$work/own.gguf" >/dev/null && die "llama.cpp runs its own file in 8 bits, but not ours"
  eight="(llama.cpp crashes in 8 bits on this machine, on a file of its own as well)"
fi
printf 'llm-surgeon:       %s\nllama.cpp, f32:   %s\nllama.cpp, q8_0:  %s\n' "$ours" "$theirs" "$eight"
[ -n "$theirs" ] && [ -n "$eight" ] || die "llama.cpp says nothing"
case "$ours" in
  "$theirs"*) say "llama.cpp goes on as llm-surgeon does" ;;
  *) die "llama.cpp goes on with other words than llm-surgeon" ;;
esac
