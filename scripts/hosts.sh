#!/usr/bin/env bash
# Coordinator, calibrators and surgeons on hosts of their own, network namespaces, that are cut off while a run goes on
# (`make test-hosts`); see hosts.py.
#
#   scripts/hosts.sh [--rounds N] [--seconds S] [--cut silent|unplugged] [--shots N] [--netem SETTINGS] [--keep FOLDER]
#
# Needs root, iproute2 and openssl. LLM_SURGEON_PROGRAMS: the folder of the programs, if they are not those that were built here.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

for tool in ip bridge openssl; do
  command -v "$tool" >/dev/null || die "$tool is missing" "on Debian and Ubuntu: apt-get install iproute2 openssl"
done
[ "$(id -u)" -eq 0 ] || die "network namespaces need root" "run: sudo scripts/hosts.sh"
try="llm-surgeon-$$-try"
ip netns add "$try" 2>/dev/null || die "this system lets nobody make network namespaces" "in a container: give it CAP_SYS_ADMIN and CAP_NET_ADMIN"
ip netns delete "$try"
programs="${LLM_SURGEON_PROGRAMS:-$(dirname "$("$scripts/binary.sh")")}"
model="$cache/models/glassllm-en"
[ -f "$model/config.json" ] || die "$model is missing" "run: make test-models"
exec nice -n 15 "$python" "$scripts/hosts.py" "$@" --programs "$programs" --model "$model" --text "$root/testdata/text"
