#!/usr/bin/env bash
# Readies a machine to build llm-surgeon (`make setup`): checks the tools, puts libtorch into the cache, verified by
# digest, and writes .cargo/config.toml, which tells cargo where it is. Fetches nothing that is already there.
#
#   LIBTORCH=DIR           use this libtorch (2.11) and fetch none
#   LLM_SURGEON_CUDA=0|1   the CPU set or the CUDA set (4.3 GB), whatever nvidia-smi says
#   LLM_SURGEON_CACHE=DIR  the cache; default: ${XDG_CACHE_HOME:-~/.cache}/llm-surgeon
#   VERIFY=1               read the libraries again and compare their full digests
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

torch_wheel=torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl
cudart_wheel=nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl
cupti_wheel=nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl

# Says everything that is missing at once.
check_machine() {
  local platform missing=() packages=() version pinned
  platform="$(uname -s) $(uname -m)"
  [ "$platform" = "Linux x86_64" ] || die "llm-surgeon builds on Linux x86_64 only; this is $platform" \
    "the libtorch it links against is the manylinux x86_64 build"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    missing+=("Python 3.10 or later as '$python' (another one: PYTHON=/path/to/python3)")
    packages+=(python3 python3-venv)
  elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=("Python's venv and ensurepip modules")
    packages+=(python3-venv)
  fi
  if ! command -v cc >/dev/null || ! command -v c++ >/dev/null; then
    missing+=("a C and a C++ compiler (cc, c++)")
    packages+=(build-essential)
  fi
  for tool in make sha256sum awk; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  pinned="$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")"
  if ! command -v cargo >/dev/null; then
    missing+=("Rust $pinned: cargo is not on the PATH (see https://rustup.rs)")
  elif ! version="$(cd "$root" && rustc --version 2>&1)"; then
    missing+=("Rust $pinned: rustc says: ${version%%$'\n'*} (rustup toolchain install $pinned --component rustfmt --component clippy)")
  elif [ "$(printf '%s\n' "$pinned" "$(awk '{ print $2 }' <<<"$version")" | sort -V | head -n 1)" != "$pinned" ]; then
    missing+=("Rust $pinned or later; found $version")
  fi
  [ ${#missing[@]} -eq 0 ] && return 0
  [ ${#packages[@]} -eq 0 ] || missing+=("" "on Debian and Ubuntu: apt-get install ${packages[*]}")
  die "this machine lacks:" "${missing[@]}"
}

# The version of the libtorch in folder $1: from a libtorch archive, a Python package, or the headers.
libtorch_version() {
  if [ -f "$1/build-version" ]; then
    head -n 1 "$1/build-version"
  elif [ -f "$1/version.py" ]; then
    sed -n "s/^__version__ = '\(.*\)'/\1/p" "$1/version.py"
  else
    sed -n 's/^#define TORCH_VERSION "\(.*\)"/\1/p' \
      "$1/include/torch/headeronly/version.h" "$1/include/torch/csrc/api/include/torch/version.h" 2>/dev/null | head -n 1
  fi
}

check_own_libtorch() {
  local version
  [ -f "$1/lib/libtorch_cpu.so" ] || die "LIBTORCH=$1 is no libtorch: it has no lib/libtorch_cpu.so" \
    "it must be the folder that holds lib/ and include/; unset it to have libtorch 2.11.0 fetched"
  [ -d "$1/include/torch" ] || die "LIBTORCH=$1 has no headers (include/torch)" "unset it to have libtorch 2.11.0 fetched"
  version="$(libtorch_version "$1")"
  case "$version" in
    2.11.*) say "using LIBTORCH=$1 (libtorch $version)" ;;
    *) die "LIBTORCH=$1 is version ${version:-unknown}; llm-surgeon needs 2.11 (tch 0.24 fits no other)" \
      "unset LIBTORCH to have libtorch 2.11.0 fetched" ;;
  esac
}

want_cuda() {
  case "${LLM_SURGEON_CUDA:-}" in
    1) return 0 ;;
    0) return 1 ;;
    "") command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU' ;;
    *) die "LLM_SURGEON_CUDA must be 0 or 1, not '$LLM_SURGEON_CUDA'" ;;
  esac
}

# What a complete folder looks like without reading half a gigabyte: the list it was checked against, and its sizes.
stamp_of() {
  sha256sum <"$scripts/libtorch.sha256"
  (cd "$1" && find torch/lib torch/version.py torch/include/torch/csrc/api/include/torch/torch.h -type f -printf '%p %s\n' | sort)
}

# libraries_match FOLDER PATTERN: the libraries whose path matches have the digests of the list.
libraries_match() {
  [ -f "$1/torch/version.py" ] && [ -f "$1/torch/include/torch/csrc/api/include/torch/torch.h" ] \
    && (cd "$1" && grep "  torch/lib/$2" "$scripts/libtorch.sha256" | sha256sum --check --status 2>/dev/null)
}

is_complete() {
  [ "${VERIFY:-0}" != 1 ] && [ -f "$1/.complete" ] && [ "$(cat "$1/.complete")" = "$(stamp_of "$1" 2>/dev/null)" ]
}

# replace NEW OLD: NEW takes OLD's place; whoever has OLD's files open keeps them.
replace() {
  [ ! -e "$2" ] || mv "$2" "$1.old"
  mv "$1" "$2"
  rm -rf "$1.old"
}

cpu_set() {
  local folder="$1" new="$1.new.$$"
  is_complete "$folder" && return 0
  if [ -d "$folder" ] && libraries_match "$folder" lib; then
    stamp_of "$folder" >"$folder/.complete"
    say "libtorch in $folder verified"
    return 0
  fi
  [ ! -d "$folder" ] || say "$folder is not what scripts/libtorch.sha256 describes: making it again"
  say "libtorch 2.11.0 for CPU: about 530 MB to fetch, 500 MB kept in $folder"
  fetch_wheel libtorch.sha256 torch==2.11.0 "$torch_wheel"
  fetch_wheel libtorch.sha256 nvidia-cuda-runtime==13.0.96 "$cudart_wheel"
  fetch_wheel libtorch.sha256 nvidia-cuda-cupti==13.0.85 "$cupti_wheel"
  # shellcheck disable=SC2064
  trap "rm -rf '$new'" EXIT
  (cd "$cache/wheels" && "$python" "$scripts/unpack_libtorch.py" "$new" "$torch_wheel" "$cudart_wheel" "$cupti_wheel") \
    || die "could not unpack libtorch into $new" "is the disk full?"
  libraries_match "$new" lib || die "the libraries unpacked from $torch_wheel are not those of scripts/libtorch.sha256"
  stamp_of "$new" >"$new/.complete"
  replace "$new" "$folder"
  (cd "$cache/wheels" && rm -f "$torch_wheel" "$cudart_wheel" "$cupti_wheel")
}

cuda_set() {
  local folder="$1" new="$1.new.$$"
  is_complete "$folder" && return 0
  # The rest of the CUDA set is pip's: here the stamp's sizes must do.
  [ -f "$folder/.complete" ] && [ "$(cat "$folder/.complete")" = "$(stamp_of "$folder" 2>/dev/null)" ] \
    && libraries_match "$folder" 'lib\(c10\|torch\|torch_cpu\)\.so' && return 0
  say "an NVIDIA GPU or LLM_SURGEON_CUDA=1: libtorch 2.11.0 with CUDA 13, about 2.5 GB to fetch, 4.3 GB kept in $folder"
  fetch_wheel libtorch.sha256 torch==2.11.0 "$torch_wheel"
  # shellcheck disable=SC2064
  trap "rm -rf '$new'" EXIT
  "$(pip_python)" -m pip install --quiet --no-cache-dir --target "$new" "${wheel_target[@]}" "$cache/wheels/$torch_wheel" \
    || die "pip could not install the CUDA libraries of torch 2.11.0" "is there room in $cache?" "LLM_SURGEON_CUDA=0 takes the CPU set instead"
  stamp_of "$new" >"$new/.complete"
  replace "$new" "$folder"
  rm -f "$cache/wheels/$torch_wheel"
}

write_cargo_config() {
  local file="$root/.cargo/config.toml" content
  content="$(printf '[env]\nLIBTORCH = "%s"\n[build]\ntarget-dir = "%s"' "$1" "$cache/target")"
  [ "$(cat "$file" 2>/dev/null)" = "$content" ] && return 0
  mkdir -p "$root/.cargo"
  printf '%s\n' "$content" >"$file"
  say "wrote .cargo/config.toml"
}

main() {
  local libtorch
  check_machine
  lock_cache
  if [ -n "${LIBTORCH:-}" ]; then
    libtorch="$(cd "$LIBTORCH" 2>/dev/null && pwd)" || die "LIBTORCH=$LIBTORCH is not a folder" "unset it to have libtorch 2.11.0 fetched"
    check_own_libtorch "$libtorch"
  elif want_cuda; then
    libtorch="$cache/libtorch-2.11.0-cu130/torch"
    cuda_set "$(dirname "$libtorch")"
  else
    libtorch="$cache/libtorch-2.11.0-cpu/torch"
    cpu_set "$(dirname "$libtorch")"
  fi
  write_cargo_config "$libtorch"
  say "ready: libtorch in $libtorch, builds in $cache/target"
}

main "$@"
