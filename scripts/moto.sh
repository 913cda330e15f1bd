#!/usr/bin/env bash
# Puts moto, a server that answers as S3 does, into the cache, for the end-to-end tests.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
lock_cache
interpreter="$(environment moto)"
unlock_cache
say "ready: $(dirname "$interpreter")/moto_server"
