#!/usr/bin/env bash
# Whether proto/ still understands who speaks an older version of it: `buf breaking` against the last tag, or against REF. Without
# a tag it is held against proto/baseline.binpb, the contract as callers know it; `renew` makes that file again.
#
#   buf_breaking.sh [REF|renew]
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
baseline="$root/proto/baseline.binpb"

reference="${1:-}"
if [ "$reference" = renew ]; then
  "$scripts/buf.sh" build --exclude-source-info -o "$baseline"
  say "written: proto/baseline.binpb"
  exit 0
fi
if [ -z "$reference" ] && ! reference="$(git -C "$root" describe --tags --abbrev=0 2>/dev/null)"; then
  against="$baseline"
  name="proto/baseline.binpb"
  [ -f "$baseline" ] || die "there is neither a tag nor proto/baseline.binpb to compare proto/ with" "git fetch --tags"
else
  commit="$(git -C "$root" rev-parse --short --verify --quiet "$reference^{commit}")" \
    || die "this checkout has no commit '$reference'" "a shallow clone lacks most: git fetch --unshallow --tags"
  work="$(mktemp -d)"
  trap 'rm -rf "$work"' EXIT
  # buf's own git input would need the whole history in a clone; a folder is enough.
  git -C "$root" archive "$commit" proto | tar -x -C "$work" || die "$reference has no proto/"
  against="$work/proto"
  name="$reference ($commit)"
fi

"$scripts/buf.sh" breaking --against "$against" \
  || die "proto/ breaks callers of $name" "add fields and methods under new numbers; what goes, is reserved"
say "proto/ breaks nothing of $name"
