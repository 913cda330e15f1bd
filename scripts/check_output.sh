#!/usr/bin/env bash
# Prunes glassllm-en in every form we write and has stock transformers, without torch, read the folders (check_autoconfig.py);
# writes small models as GGUF and has the package `gguf` read them (verify_formats.py); checks their
# reports against the schema (check_report.py).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

text="$root/testdata/text"
binary="$("$scripts/binary.sh")"
lock_cache
interpreter="$(environment check)"
unlock_cache
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# prune NAME MODEL FLAGS...
prune() {
  local name="$1" model="$2"
  shift 2
  "$binary" prune "$model" --data "$text/calibration" --samples 24 --seq-len 128 --device cpu --quiet "$@" \
    --state "$work/state/$name" --out "$work/out/$name" >/dev/null || die "pruning failed: $name ($*)"
}
glassllm="$cache/models/glassllm-en"
prune uniform "$glassllm" --target-size 0.8 --shots 2 --multiple-of 1 --eval-data "$text/heldout" --eval-samples 4
prune half "$glassllm" --target-size 0.5 --shots 1 --multiple-of 4
prune query-heads "$glassllm" --target-size 0.6 --shots 1 --multiple-of 1 --heads query-head
prune padded "$glassllm" --target-size 0.7 --shots 1 --multiple-of 1 --shape padded --correct-rank 2 --correct-steps 2
prune per-layer "$glassllm" --target-size 0.7 --shots 1 --multiple-of 1 --shape per-layer
prune row-column "$glassllm" --target-size 0.8 --shots 1 --structure row-column
prune auto "$glassllm" --target-size 0.8 --shots 1 --multiple-of 1 --shape auto
prune two-of-four "$glassllm" --structure 2:4 --rounds 1

# The FFN of 64 cannot shrink here, so a head must go, and 96 is no multiple of 5 heads.
"$interpreter" "$scripts/random_llama.py" "$glassllm" "$work/six-heads"
prune five-heads "$work/six-heads" --target-size 0.9 --shots 1 --multiple-of 64
grep -q '"num_attention_heads": 5' "$work/out/five-heads/config.json" || die "five-heads: a model of 5 heads was expected"

"$interpreter" "$scripts/check_autoconfig.py" "$glassllm" "$work"/out/*
"$interpreter" "$scripts/check_report.py" "$work"/out/*
say "stock transformers reads all of them, and their reports are as docs/pruning_report.schema.json says"

# The same models in every format, for the GGUF reader of another project.
# With the whole workspace: other sets of features would be compiled anew.
"${CARGO:-cargo}" build --quiet --release --workspace --example write_formats
"$(dirname "$("$scripts/binary.sh")")/examples/write_formats" "$work/formats" >/dev/null
"$interpreter" "$scripts/verify_formats.py" read "$work/formats"
