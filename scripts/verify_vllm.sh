#!/usr/bin/env bash
# Prunes SmolLM2 and has vLLM load the folders, on a CPU (verify_vllm.py): uniform and padded ones must go on from a prompt with
# the tokens of `llm-surgeon generate`, a per-layer one must be refused. Linux on x86_64, with libnuma. Not part of CI:
# the packages are those of `make verify-hf` (4.3 GB) and 0.6 GB more.
#
#   GOLDEN_PYTHON=PATH   an interpreter that has scripts/requirements/golden.txt; default: one in the cache
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

"$scripts/demo_model.sh" SmolLM2-135M-Instruct
"$scripts/demo_data.sh"
binary="$("$scripts/binary.sh")"
lock_cache
golden="${GOLDEN_PYTHON:-$(environment golden)}"
"$golden" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || die "vLLM needs libnuma.so.1" "on Debian and Ubuntu: apt-get install libnuma1"
packages="$cache/venvs/vllm"
wanted="$(cat "$scripts/requirements/vllm.txt"; "$golden" -c 'import sys; print(sys.version)')"
if [ "$(cat "$packages/.complete" 2>/dev/null)" != "$wanted" ]; then
  say "installing the Python packages of scripts/requirements/vllm.txt"
  rm -rf "$packages"
  "$golden" -m pip install --quiet --target "$packages" --no-deps --only-binary=:all: --requirement "$scripts/requirements/vllm.txt" \
    || die "pip could not install scripts/requirements/vllm.txt" "is the package index (PyPI) reachable?"
  printf '%s\n' "$wanted" >"$packages/.complete"
fi
unlock_cache

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
prune() {
  "$binary" prune "$cache/models/SmolLM2-135M-Instruct" --data "$cache/sotu/calibration" --samples 8 --seq-len 256 --target-size 0.8 \
    --multiple-of 64 --quiet --shape "$1" --out "$work/$1" --state "$work/state-$1" >/dev/null
}

# vllm ARGUMENT...: verify_vllm.py with them. Without torch.compile, which takes longer than all the rest and needs a compiler.
vllm() {
  PYTHONPATH="$packages" XDG_CACHE_HOME="$work/cache" XDG_CONFIG_HOME="$work/config" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' \
    TORCHDYNAMO_DISABLE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_HOST_IP=127.0.0.1 VLLM_LOGGING_LEVEL=ERROR \
    VLLM_NO_USAGE_STATS=1 "$golden" "$scripts/verify_vllm.py" "$@" 2>"$work/log" && return
  cat "$work/log" >&2
  return 1
}
prompt="My fellow citizens, the state of the Union is"
for shape in uniform padded; do
  prune "$shape"
  ours="$("$binary" generate "$work/$shape" --prompt "$prompt" --tokens 16 --device cpu --json 2>/dev/null)"
  vllm same "$work/$shape" "$prompt" "$ours" || die "vLLM does not go on from a $shape folder as llm-surgeon does"
  say "$shape: vLLM goes on as llm-surgeon does"
done
prune per-layer
vllm refused "$work/per-layer" || die "vLLM does not refuse a per-layer folder in the known way"
say "per-layer: vLLM refuses it, as docs/take-it-from-here.md says"
