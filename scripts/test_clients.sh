#!/usr/bin/env bash
# The smoke clients in clients/: each submits a run to real services, follows it while the coordinator is killed and started
# again, reads its report, and meets a refusal. First over Unix sockets, then over loopback. Ends with a line for each client.
#
#   test_clients.sh [node] [go]   only these; both by default
#   LLM_SURGEON_PROGRAMS=DIR      the folder of coordinator, calibrator and surgeon; by default what `make build` built
#
# A client whose language cannot be had on this machine is skipped, and its line says so.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

wanted=("$@")
[ $# -gt 0 ] || wanted=(node go)
for client in "${wanted[@]}"; do
  case "$client" in node | go) ;; *) die "there is no client '$client'" "node and go are there" ;; esac
done
if [ -n "${LLM_SURGEON_PROGRAMS:-}" ]; then
  programs="$LLM_SURGEON_PROGRAMS"
else
  programs="$(dirname "$("$scripts/binary.sh")")"
fi
for program in coordinator calibrator surgeon; do
  [ -x "$programs/$program" ] || die "$programs/$program is not built" "run: make build"
done
model="$cache/models/glassllm-en"
[ -f "$model/config.json" ] || die "the model $model is missing" "run: make test-models"
text="$root/testdata/text"

work="$(mktemp -d)"
declare -A process=()
follower=""

clean_up() {
  local pid
  [ -z "$follower" ] || kill -TERM "$follower" 2>/dev/null || true # `timeout` passes it on; it could not pass on SIGKILL
  for pid in "${process[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT

# ---- languages -------------------------------------------------------------------------------------------------------

# Each prepare_* leaves a command in ${command[NAME]}, or the reason why there is none in ${skipped[NAME]}.
declare -A command=() skipped=() result=()

# Packages in the cache, by the lock file; the program beside them, laid out as here so that it finds proto/.
prepare_node() {
  local major folder="$cache/clients/node" lock
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    skipped[node]="node and npm are not installed (on Debian and Ubuntu: apt-get install nodejs npm)"
    return
  fi
  major="$(node --print 'process.versions.node.split(".")[0]')"
  if [ "$major" -lt 18 ]; then
    skipped[node]="node $major is too old: 18 or later is needed"
    return
  fi
  lock="$(sha256sum "$root/clients/node/package-lock.json" | cut -d' ' -f1) node $major"
  if [ "$(cat "$folder/.complete" 2>/dev/null)" != "$lock" ]; then
    say "installing the packages of clients/node/package-lock.json"
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$root"/clients/node/package{,-lock}.json "$folder"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) \
      || die "npm could not install clients/node/package-lock.json" "is the npm registry reachable?"
    printf '%s\n' "$lock" >"$folder/.complete"
  fi
  mkdir -p "$work/tree/clients/node"
  cp "$root"/clients/node/*.js* "$work/tree/clients/node"
  ln -s "$folder/node_modules" "$work/tree/clients/node/node_modules"
  ln -s "$root/proto" "$work/tree/proto"
  "$folder/node_modules/.bin/tsc" --project "$work/tree/clients/node" || die "types of clients/node do not check"
  command[node]="node $work/tree/clients/node/smoke.js"
}

# Go, its gRPC and the generators, as Debian packages: gRPC for Go cannot be had from PyPI, npm or crates.io. The protobuf library in
# the versions that the generators write for; apt would choose an older one.
go_packages() {
  debian_packages "$1" 'golang|protoc-gen' golang-go golang-google-grpc-dev golang-google-protobuf-dev \
    golang-github-golang-protobuf-1-5-dev protoc-gen-go protoc-gen-go-grpc
}

prepare_go() {
  local folder="$cache/clients/go" source="$work/gopath/src/llmsurgeon" interpreter file options=() untidy generator
  if [ ! -f "$folder/.complete" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
      skipped[go]="Go's packages come from Debian's or Ubuntu's archive, and this machine has no apt-get"
      return
    fi
    say "fetching Go and its gRPC from the packages of $(. /etc/os-release && printf '%s' "$PRETTY_NAME") (600 MB unpacked)"
    rm -rf "$folder"
    if ! go_packages "$folder"; then
      skipped[go]="apt-get could not fetch Go's packages (see above); is Debian's archive reachable?"
      rm -rf "$folder"
      return
    fi
    touch "$folder/.complete"
  fi
  GOROOT="$(dirname "$(dirname "$(readlink -f "$folder/usr/bin/go")")")"
  # Debian lays its libraries out as a GOPATH: no modules, and nothing is fetched.
  export GOROOT GOPATH="$work/gopath:$folder/usr/share/gocode" GOCACHE="$folder/build" GO111MODULE=off GOTOOLCHAIN=local \
    GOFLAGS="" CGO_ENABLED=0

  # The messages are made here and not committed: what the generators write depends on Debian's version of them.
  interpreter="$(environment client)"
  mkdir -p "$source/smoke"
  for generator in go go-grpc; do
    options+=("--plugin=protoc-gen-$generator=$folder/usr/bin/protoc-gen-$generator" "--${generator}_out=$work/gopath/src")
    for file in coordinator_service path run worker_service; do
      options+=("--${generator}_opt=Mllm_surgeon/v1/$file.proto=llmsurgeon/v1")
    done
  done
  (cd "$root/proto" && "$interpreter" -m grpc_tools.protoc --proto_path=. "${options[@]}" \
    llm_surgeon/v1/{coordinator_service,path,run,worker_service}.proto) || die "the messages for Go could not be made"
  cp "$root"/clients/go/*.go "$source/smoke"
  untidy="$("$GOROOT/bin/gofmt" -l "$source/smoke")"
  [ -z "$untidy" ] || die "gofmt would change: $(xargs -n 1 basename <<<"$untidy" | xargs)" "run gofmt -w on them"
  "$GOROOT/bin/go" vet llmsurgeon/smoke || die "go vet complains about clients/go"
  "$GOROOT/bin/go" build -o "$work/go-smoke" llmsurgeon/smoke || die "clients/go does not build"
  command[go]="$work/go-smoke"
}

lock_cache
for client in "${wanted[@]}"; do
  "prepare_$client"
done
unlock_cache

# ---- services --------------------------------------------------------------------------------------------------------

# failed MESSAGE: ends with what the services and the client said last.
failed() {
  local log
  for log in "$work"/*/*.log; do
    [ -s "$log" ] || continue
    printf -- '---- %s\n' "${log#"$work/"}" >&2
    tail -n 15 "$log" >&2
  done
  die "$@"
}

# wait_for SECONDS CONDITION...: whether the condition comes true in time.
wait_for() {
  local ends=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$ends" ] || return 1
    sleep 0.05
  done
}

# start SERVICE ADDRESS FLAGS...: in folder $cluster.
start() {
  local service="$1" address="$2"
  shift 2
  "$programs/$service" --store "$cluster/store" --listen "$address" "$@" 2>>"$cluster/$service.log" &
  process[$service]=$!
}

stop() {
  kill -KILL "${process[$1]}"
  wait "${process[$1]}" 2>/dev/null || true
  unset "process[$1]"
}

listens() { grep -qs 'listening' "$cluster/coordinator.log"; }

# start_all unix|loopback: three services in $cluster; $address is where the coordinator listens, $target where clients call.
start_all() {
  local url worker place
  cluster="$work/$1"
  mkdir "$cluster"
  address=127.0.0.1:0
  [ "$1" = loopback ] || address="unix://$cluster/coordinator.sock"
  start coordinator "$address"
  wait_for 30 listens || failed "the coordinator did not start"
  # Port 0 is any port; the log says which.
  url="$(sed -n 's/.*listening.*endpoint="\([^"]*\)".*/\1/p' "$cluster/coordinator.log")"
  target="${url#http://}"
  address="$target"
  for worker in calibrator surgeon; do
    place=127.0.0.1:0
    [ "$1" = loopback ] || place="unix://$cluster/$worker.sock"
    start "$worker" "$place" --coordinator "$url" --worker "$worker" --device cpu --threads 1
  done
}

# ---- the test --------------------------------------------------------------------------------------------------------

# call CLIENT FLAGS...: one call of the client in $cluster.
call() {
  local client="$1"
  shift
  # shellcheck disable=SC2086 # a command of one or two words
  exec timeout 300 ${command[$client]} --coordinator "$target" --model "$model" --data "$text/calibration" \
    --eval-data "$text/heldout" --out "$cluster/out-$client" "$@" >"$cluster/$client.out" 2>"$cluster/$client.log"
}

# under_way CLIENT: whether the run that it follows has five records.
under_way() {
  local run records
  run="$(sed -n 's/^following //p' "$cluster/$1.log")"
  [ -n "$run" ] && records=("$cluster/store/$run/journal/"*) && [ ${#records[@]} -ge 5 ]
}

check() {
  local client="$1" status=0
  (call "$client" --target-size 1.5) || status=$?
  [ "$status" = 1 ] || failed "$client: a target of 1.5 gave exit code $status, not 1"
  if ! grep -q '^refused: \[SPEC_INVALID\]' "$cluster/$client.log" || ! grep -q '^  target: ' "$cluster/$client.log"; then
    failed "$client: a target of 1.5 was not refused as SPEC_INVALID, with the field's name"
  fi

  status=0
  (call "$client") &
  follower=$!
  wait_for 120 under_way "$client" || failed "$client: its run did not get under way"
  stop coordinator
  start coordinator "$address"
  wait "$follower" || status=$?
  follower=""
  [ "$status" = 0 ] || failed "$client: exit code $status"
  # The client itself checks that no record is missing or comes twice; here, that there was a break.
  grep -q '^connection lost after record' "$cluster/$client.log" || failed "$client: it did not notice that the coordinator was killed"
  [ -f "$cluster/out-$client/model.safetensors" ] || failed "$client: no model was written"
  say "$client: $transport: $(cat "$cluster/$client.out")"
}

for transport in unix loopback; do
  [ ${#command[@]} -gt 0 ] || break
  start_all "$transport"
  for client in "${wanted[@]}"; do
    [ -z "${command[$client]:-}" ] || check "$client"
  done
  for service in "${!process[@]}"; do
    stop "$service"
  done
done

for client in "${wanted[@]}"; do
  if [ -n "${skipped[$client]:-}" ]; then
    result[$client]="SKIPPED: ${skipped[$client]}"
  else
    result[$client]="passed: run, killed coordinator, report and refusal, over Unix sockets and loopback"
  fi
  say "$client: ${result[$client]}"
done
