#!/usr/bin/env bash
# Takes the picture of a run's page for the README: prunes glassllm-en and photographs report.html with a headless Chromium.
# report_screenshot.sh [PICTURE]
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

picture="${1:-$root/docs/report.png}"
text="$root/testdata/text"
binary="$("$scripts/binary.sh")"
for name in chromium chromium-browser google-chrome; do
  browser="$(command -v "$name")" && break
done
[ -n "${browser:-}" ] || die "no Chromium to take pictures with" "on Debian and Ubuntu: apt-get install chromium"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$binary" prune "$cache/models/glassllm-en" --data "$text/calibration" --eval-data "$text/heldout" \
  --samples 64 --seq-len 128 --eval-samples 64 --target-size 0.7 --shots 4 --shape per-layer --multiple-of 1 --device cpu --quiet \
  --out "$work/glassllm-0.7" >/dev/null
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --run-all-compositor-stages-before-draw --virtual-time-budget=2000 --force-color-profile=srgb --user-data-dir="$work/profile" \
  --window-size=1200,1650 --screenshot="$work/page.png" "file://$work/glassllm-0.7/report.html" 2>"$work/log" \
  || die "Chromium took no picture" "$(tail -n 3 "$work/log")"
mv "$work/page.png" "$picture"
say "$picture: $(($(stat -c %s "$picture") / 1024)) KiB"
