#!/usr/bin/env bash
# Runs cargo-deny (deny.toml): licences, sources, who may use tch and tonic. Installs it into the cache once (minutes).
# Advisories need the advisory database: `cargo deny check advisories` where it can be fetched.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

version=0.20.2
deny="$cache/tools/bin/cargo-deny"
if command -v cargo-deny >/dev/null; then
  deny=cargo-deny
elif [ ! -x "$deny" ]; then
  lock_cache
  say "building cargo-deny $version into $cache/tools (once, a few minutes)"
  CARGO_TARGET_DIR="$cache/tools/target" cargo install --quiet --locked --root "$cache/tools" "cargo-deny@$version" \
    || die "cargo-deny $version could not be built" "is the crate registry reachable?"
  rm -rf "$cache/tools/target"
fi
cd "$root"
"$deny" --log-level error check bans licenses sources
