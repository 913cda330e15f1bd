#!/usr/bin/env bash
# What is watched, watched: real services, scraped by a real Prometheus during a small run. What they tell at /metrics is
# compared with docs/telemetry.json, and every panel of the dashboards and every alert is evaluated and must find data.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

for tool in prometheus promtool curl; do
  command -v "$tool" >/dev/null || die "$tool is missing" "on Debian and Ubuntu: apt-get install prometheus curl"
done
programs="$(dirname "$("$scripts/binary.sh")")"
lock_cache
interpreter="$(environment observability)"
unlock_cache
work="$(mktemp -d)"
processes=()
finish() {
  kill "${processes[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

# Free ports, all different: they are held until all are known.
read -r coordinator calibrator surgeon m0 m1 m2 server < <("$python" - <<'END'
import socket
held = [socket.socket() for _ in range(7)]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*[one.getsockname()[1] for one in held])
END
)

cat >"$work/prometheus.yaml" <<END
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: ["$root/k8s/observability/alerts.yaml"]
scrape_configs:
$(for pair in coordinator:$m0 calibrator:$m1 surgeon:$m2; do
  printf '  - job_name: %s\n    static_configs: [{ targets: ["127.0.0.1:%s"], labels: { namespace: test } }]\n' "${pair%:*}" "${pair#*:}"
done)
END
promtool check config "$work/prometheus.yaml" >"$work/config.log" || die "Prometheus refuses the test's config" "$(cat "$work/config.log")"

start() {
  local name="$1"
  shift
  "$@" >"$work/$name.log" 2>&1 &
  processes+=("$!")
}
start prometheus prometheus --config.file "$work/prometheus.yaml" --storage.tsdb.path "$work/tsdb" --web.listen-address "127.0.0.1:$server" --log.level=warn
start coordinator "$programs/coordinator" --store "$work/store" --listen "127.0.0.1:$coordinator" --metrics "127.0.0.1:$m0" --log-format json
for worker in "calibrator:$calibrator:$m1" "surgeon:$surgeon:$m2"; do
  IFS=: read -r name port metrics <<<"$worker"
  start "$name" "$programs/$name" --store "$work/store" --coordinator "http://127.0.0.1:$coordinator" --listen "127.0.0.1:$port" \
    --metrics "127.0.0.1:$metrics" --device cpu --threads 1 --log-format json
done

say "a run of some seconds, scraped every second"
for _ in $(seq 100); do
  "$programs/llm-surgeon" workers --coordinator "http://127.0.0.1:$coordinator" --json 2>/dev/null | grep -c . | grep -qx 2 && break
  sleep 0.2
done
"$programs/llm-surgeon" submit --coordinator "http://127.0.0.1:$coordinator" "$cache/models/glassllm-en" --follow --quiet \
  --data "$root/testdata/text/calibration" --eval-data "$root/testdata/text/heldout" --seq-len 128 --samples 160 --shot-data same --eval-samples 48 \
  --multiple-of 1 --shape per-layer --target-size 0.8 --shots 12 --out "$work/pruned" >"$work/run.log" 2>&1 &
run=$!
# What is told of a run is told while it is under way: the last page on which that is counts.
while kill -0 "$run" 2>/dev/null; do
  curl --silent --show-error --fail "http://127.0.0.1:$m0/metrics" >"$work/now.txt"
  ! grep -q shot_progress "$work/now.txt" || ! grep -q run_threshold "$work/now.txt" || mv "$work/now.txt" "$work/under-way.txt"
  sleep 0.5
done
wait "$run" || die "the run failed" "$(tail -n 20 "$work/run.log" "$work"/c*.log "$work/surgeon.log")"
# Nobody calls a surgeon that works for a coordinator, but for somebody who looks: an empty message.
printf '\0\0\0\0\0' | curl --silent --show-error --fail --http2-prior-knowledge --data-binary @- --output /dev/null \
  -H 'content-type: application/grpc' -H 'te: trailers' "http://127.0.0.1:$surgeon/llm_surgeon.v1.SurgeonService/ListBlocks"
sleep 3 # the last scrapes
for worker in "coordinator:$m0" "calibrator:$m1" "surgeon:$m2"; do
  curl --silent --show-error --fail "http://127.0.0.1:${worker#*:}/metrics" >"$work/${worker%:*}.txt"
done
"$interpreter" -B "$scripts/observability_check" --metrics "$work/under-way.txt" "$work/coordinator.txt" "$work/calibrator.txt" "$work/surgeon.txt" \
  --prometheus "http://127.0.0.1:$server" --since 600 --rate-interval 10s
