#!/usr/bin/env bash
# Measures the sweep on random weights of Llama-2-7B's shape on one GPU: tokens per second, share of the measured matrix
# rate (the floor is timed in the same run), peak memory. Needs about 14 GiB on the card for weights in bf16 and 70 GiB on
# the host for boundary states; fewer samples need less.
#
#   scripts/gpu_sweep.sh [DEVICE] [SAMPLES]      default: cuda:0 128
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

device=${1:-cuda:0}
samples=${2:-128}
cd "$root"
cargo build --release --quiet -p model --example sweep_floor
used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | sort -n | tail -n 1; }
peak="$(mktemp)"
(while sleep 1; do used; done >"$peak") &
watcher=$!
trap 'kill "$watcher" 2>/dev/null; rm -f "$peak"' EXIT
cargo run --release --quiet -p model --example sweep_floor -- "device=$device" dtype=bf16 hidden=4096 ffn=11008 heads=32 kv=32 \
  blocks=32 vocab=32000 "samples=$samples" tokens=2048 micro=4 chunk=4096 repeat=3
echo "peak memory of the card: $(sort -n "$peak" | tail -n 1) MiB"
