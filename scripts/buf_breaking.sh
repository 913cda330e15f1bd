#!/usr/bin/env bash
# Whether proto/ still understands who speaks an older version of it: `buf breaking` against the last tag, or against REF.
#
#   buf_breaking.sh [REF]
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

reference="${1:-}"
if [ -z "$reference" ] && ! reference="$(git -C "$root" describe --tags --abbrev=0 2>/dev/null)"; then
  say "no tag to compare proto/ with: nothing is published yet, or this checkout has no tags (git fetch --tags)"
  exit 0
fi
commit="$(git -C "$root" rev-parse --short --verify --quiet "$reference^{commit}")" \
  || die "this checkout has no commit '$reference'" "a shallow clone lacks most: git fetch --unshallow --tags"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# buf's own git input would need the whole history in a clone; a folder is enough.
git -C "$root" archive "$commit" proto | tar -x -C "$work" || die "$reference has no proto/"

"$scripts/buf.sh" breaking --against "$work/proto" \
  || die "proto/ breaks callers of $reference ($commit)" "add fields and methods under new numbers; what goes, is reserved"
say "proto/ breaks nothing of $reference ($commit)"
