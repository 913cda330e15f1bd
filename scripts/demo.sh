#!/usr/bin/env bash
# The demo: prunes MODEL on the State of the Union addresses and leaves the result in a new folder below OUT. An earlier
# demo's folder is kept: the next one gets a number. One that was stopped half-way (its folder is not there yet, its
# .state is) goes on where it was.
#
#   demo.sh MODEL OUT PRUNE-FLAGS...
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

model="$1"
out="$2"
shift 2
size="$(printf '%s\n' "$@" | awk 'found { print $1 * 100; exit } $0 == "--target-size" { found = 1 }')"
name="$(basename "$model" | sed 's/-Instruct$//')-${size:-pruned}"
folder="$out/$name"
number=2
while [ -e "$folder" ]; do
  folder="$out/$name-$number"
  number=$((number + 1))
done
mkdir -p "$out"
[ "$folder" = "$out/$name" ] || say "$out/$name is an earlier demo's; this one goes to $folder"
binary="$("$scripts/binary.sh")"
command=("$binary" prune "$model" --data "$cache/sotu/calibration" --eval-data "$cache/sotu/heldout" "$@" --out "$folder")
printf '\n$'
printf ' %q' "${command[@]}"
printf '\n\n'
exec "${command[@]}"
