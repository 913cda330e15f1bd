#!/usr/bin/env bash
# Puts libfaketime, a library that lies to programs about the time, into the cache, for the test of clocks that jump.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

folder="$cache/faketime"
library() { find "$folder" /usr/lib /usr/local/lib -name libfaketimeMT.so.1 2>/dev/null | head -n 1; }

lock_cache
if [ -z "$(library)" ]; then
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    say "skipped: it comes from Debian's or Ubuntu's archive, and this machine has no apt-get; the test of jumping clocks says so"
    exit 0
  fi
  rm -rf "$folder"
  if ! debian_packages "$folder" libfaketime libfaketime; then
    rm -rf "$folder"
    say "skipped: apt-get could not fetch it (see above); the test of jumping clocks says so"
    exit 0
  fi
fi
unlock_cache
say "ready: $(library)"
