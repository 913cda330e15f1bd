#!/usr/bin/env bash
# The images' root file systems, as k8s/images/files.txt lists them: the Containerfiles make them with this script, and so
# does anybody without a container engine.
#
#   images.sh root IMAGE FOLDER    make the root of coordinator, worker-cpu or worker-cuda in FOLDER; of demo what it adds to
#                                  worker-cpu: a model (DEMO_MODEL, default glassllm-en) and text
#   images.sh check [IMAGE...]     make roots and run services in them (images_check.sh); default: coordinator worker-cpu
#   images.sh sbom FOLDER [IMAGE...]   make roots and write a bill of materials of each (CycloneDX) into FOLDER
#   images.sh lint                 hadolint over the Containerfiles; whether they name the Rust of rust-toolchain.toml
#   images.sh pin                  write k8s/images/debian.txt anew, with the versions that Debian has today
#
#   LLM_SURGEON_PROGRAMS=DIR       the programs, if they are not those that `make build` built
#   LLM_SURGEON_LIBTORCH=DIR       the folder that holds torch/, if it is not in the cache
#   DEBIAN_MIRROR=URL              default: http://deb.debian.org/debian; for versions that have gone from there:
#                                  http://snapshot.debian.org/archive/debian/DATE (its form: 20261123T000000Z)
#   DEBIAN_SECURITY_MIRROR=URL     default: http://deb.debian.org/debian-security
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

images="$root/k8s/images"
archives="$cache/images/packages"
packages=(ca-certificates gcc-12-base libc6 libgcc-s1 libstdc++6 zlib1g)

# with_apt COMMAND...: runs it with apt's options in ${apt[@]}, for Debian 12 whatever this system is, and lists of our own.
with_apt() {
  local folder keyring=/usr/share/keyrings/debian-archive-keyring.gpg suite
  command -v apt-get >/dev/null \
    || die "Debian's packages come by apt-get, which is not here" "build the images with a container engine instead"
  [ -f "$keyring" ] || die "$keyring is missing" "on Debian and Ubuntu: apt-get install debian-archive-keyring"
  folder="$(mktemp -d)"
  # shellcheck disable=SC2064
  trap "rm -rf '$folder'" EXIT
  mkdir -p "$folder"/lists/partial "$folder"/cache/archives/partial
  for suite in "${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm" \
    "${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security} bookworm-security"; do
    printf 'deb [arch=amd64 signed-by=%s check-valid-until=no] %s main\n' "$keyring" "$suite"
  done >"$folder/sources"
  apt=(-o Dir::Etc::SourceList="$folder/sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State="$folder"
    -o Dir::State::Lists="$folder/lists" -o Dir::State::Status=/dev/null -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=
    -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Default-Release= --quiet --quiet)
  apt-get "${apt[@]}" update || die "apt-get could not read Debian's lists" "is ${DEBIAN_MIRROR:-deb.debian.org} reachable?"
  "$@"
  rm -rf "$folder"
  trap - EXIT
}

# missing_packages: the lines of debian.txt whose archives are not in the cache.
missing_packages() {
  local name version architecture digest
  while read -r name version architecture digest; do
    case "$name" in "" | "#"*) continue ;; esac
    [ -f "$archives/$digest.deb" ] || printf '%s %s %s %s\n' "$name" "$version" "$architecture" "$digest"
  done <"$images/debian.txt"
}

fetch_missing() {
  local name version architecture digest new="$archives/.new.$$"
  mkdir -p "$new"
  while read -r name version architecture digest; do
    rm -f "$new"/*
    (cd "$new" && apt-get "${apt[@]}" download "$name:$architecture=$version") \
      || die "Debian no longer has $name $version" \
        "set DEBIAN_MIRROR to a snapshot of the time of k8s/images/debian.txt, or run: scripts/images.sh pin"
    matches "$(echo "$new"/*.deb)" "$digest" || die "$name $version is not the file that k8s/images/debian.txt describes (SHA-256 differs)"
    mv "$new"/*.deb "$archives/$digest.deb"
  done < <(missing_packages)
  rm -rf "$new"
}

fetch_packages() {
  lock_cache
  if [ -n "$(missing_packages)" ]; then
    say "fetching Debian packages of k8s/images/debian.txt"
    with_apt fetch_missing
  fi
  unlock_cache
}

pins() {
  printf '# Debian 12 packages that files of the images come from. scripts/images.sh pin, %s\n# NAME VERSION ARCHITECTURE SHA-256\n' \
    "$(date -u +%F)"
  # shellcheck disable=SC2016 # awk's fields
  apt-cache "${apt[@]}" show --no-all-versions "${packages[@]}" \
    | awk '{ field[$1] = $2 } $1 == "SHA256:" { print field["Package:"], field["Version:"], field["Architecture:"], $2 }'
}

pin() {
  local new
  new="$(with_apt pins)"
  [ "$(grep -cv '^#' <<<"$new")" -eq ${#packages[@]} ] || die "Debian's lists lack some of: ${packages[*]}"
  printf '%s\n' "$new" >"$images/debian.txt"
  say "wrote k8s/images/debian.txt"
}

# make_demo FOLDER: only what the demo's image has beside the worker's.
make_demo() {
  local model="$cache/models/${DEMO_MODEL:-glassllm-en}"
  [ -f "$model/config.json" ] || die "$model is missing" "run: scripts/demo_model.sh ${DEMO_MODEL:-glassllm-en}"
  mkdir -p "$1/demo"
  cp -r "$model" "$1/demo/model"
  cp -r "$root/testdata/text" "$1/demo/text"
  chmod -R u=rwX,go=rX "$1"
}

# make_root IMAGE FOLDER
make_root() {
  if [ "$1" = demo ]; then
    make_demo "$2"
    say "demo: $(du -sh --apparent-size "$2" | cut -f1) beside worker-cpu"
    return
  fi
  local programs="${LLM_SURGEON_PROGRAMS:-}" libtorch="${LLM_SURGEON_LIBTORCH:-}" tool
  for tool in strip dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing" "on Debian and Ubuntu: apt-get install binutils dpkg"
  done
  [ -n "$programs" ] || programs="$(dirname "$("$scripts/binary.sh")")"
  if [ -z "$libtorch" ]; then
    case "$1" in *-cuda) libtorch="$cache/libtorch-2.11.0-cu130" ;; *) libtorch="$cache/libtorch-2.11.0-cpu" ;; esac
  fi
  fetch_packages
  "$python" "$scripts/images_root.py" "$1" "$2" --programs "$programs" --libtorch "$libtorch" --packages "$archives"
  say "$1: $(du -sh --apparent-size "$2" | cut -f1) in $(find "$2" -type f | wc -l) files"
}

# in_scratch: a folder beside the cache's libtorch, so that its libraries need not be copied; removed at the end.
in_scratch() {
  mkdir -p "$cache/images"
  scratch="$(mktemp -d "$cache/images/roots.XXXXXX")"
  chmod 755 "$scratch"
  trap 'rm -rf "$scratch"' EXIT
}

check() {
  local image
  [ $# -gt 0 ] || set -- coordinator worker-cpu
  in_scratch
  for image in "$@" demo; do
    make_root "$image" "$scratch/$image"
  done
  "$scripts/images_check.sh" "$scratch" "$scratch/demo/demo/model" "$scratch/demo/demo/text" "$@"
}

sbom() {
  local folder="$1" image interpreter
  shift
  [ $# -gt 0 ] || set -- coordinator worker-cpu
  mkdir -p "$folder"
  lock_cache
  interpreter="$(environment images)"
  unlock_cache
  in_scratch
  for image in "$@"; do
    make_root "$image" "$scratch/$image"
    "$interpreter" "$scripts/images_sbom.py" "$image" "$scratch/$image" "$folder/$image.cdx.json"
  done
}

lint() {
  local interpreter pinned file
  lock_cache
  interpreter="$(environment images)"
  unlock_cache
  "$(dirname "$interpreter")/hadolint" "$images"/*.Containerfile
  pinned="$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")"
  for file in coordinator worker; do
    grep -qx "ARG RUST_VERSION=$pinned" "$images/$file.Containerfile" \
      || die "k8s/images/$file.Containerfile does not build with Rust $pinned"
  done
  say "hadolint has nothing to say, and Rust is $pinned"
}

case "${1:-}" in
  root)
    [ $# -eq 3 ] || die "usage: images.sh root IMAGE FOLDER"
    make_root "$2" "$3"
    ;;
  check) check "${@:2}" ;;
  sbom)
    [ $# -ge 2 ] || die "usage: images.sh sbom FOLDER [IMAGE...]"
    sbom "${@:2}"
    ;;
  lint) lint ;;
  pin) pin ;;
  *) die "usage: images.sh root IMAGE FOLDER | check [IMAGE...] | sbom FOLDER [IMAGE...] | lint | pin" ;;
esac
