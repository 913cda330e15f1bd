#!/usr/bin/env bash
# Runs the services in roots that images.sh made, as a container engine would: each in namespaces of its own, as process 1 and
# user 65532, on a root that is read-only but for /tmp, with no variables but PATH and no network but loopback. A real run of
# three services and a client in four such containers is part of it. Called by `images.sh check`.
#
#   images_check.sh ROOTS MODEL TEXT IMAGE...      ROOTS/IMAGE is the root of IMAGE
#
# Needs util-linux (unshare, setpriv), iproute2, and root or a system that lets users have namespaces; no container engine.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

# Hosts' namespaces first: what is mounted, started or called here is gone when the script ends.
if [ "${LLM_SURGEON_INSIDE:-}" != 1 ]; then
  for tool in unshare setpriv ip; do
    command -v "$tool" >/dev/null || die "$tool is missing" "on Debian and Ubuntu: apt-get install util-linux iproute2"
  done
  namespaces=(--mount --net --pid --fork --kill-child --mount-proc)
  [ "$(id -u)" -eq 0 ] || namespaces=(--user --map-root-user "${namespaces[@]}")
  unshare "${namespaces[@]}" true 2>/dev/null \
    || die "this system lets nobody make namespaces" \
      "in a container: give it CAP_SYS_ADMIN; otherwise: sudo, or sysctl kernel.unprivileged_userns_clone=1"
  exec env LLM_SURGEON_INSIDE=1 LLM_SURGEON_USER="$(id -u)" unshare "${namespaces[@]}" "$0" "$@"
fi

roots="$1" model="$2" text="$3"
images=("${@:4}")
work="$roots/check"
mkdir "$work"
ip link set lo up
passed=0

failed() {
  local log
  for log in "$work"/*.log; do
    [ -s "$log" ] || continue
    printf -- '---- %s\n' "$(basename "$log")" >&2
    tail -n 15 "$log" >&2
  done
  die "$@"
}

ok() {
  passed=$((passed + 1))
  say "$*"
}

# ---- containers ------------------------------------------------------------------------------------------------------

# In the container's namespaces: mounts what an engine mounts, and becomes the command.
# shellcheck disable=SC2016 # expanded in there
container='
set -eu
root="$1" work="$2" model="$3" text="$4" caller="$5"
shift 5
variables=(PATH=/usr/local/bin)
while [[ "$1" == [A-Z]*=* ]]; do
  variables+=("$1")
  shift
done
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o nosuid,nodev,mode=1777,size=64m tmpfs "$root/tmp"
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$root/mnt"
mkdir "$root/mnt/model" "$root/mnt/text" "$root/mnt/data"
mount --bind "$model" "$root/mnt/model" && mount -o remount,bind,ro "$root/mnt/model"
mount --bind "$text" "$root/mnt/text" && mount -o remount,bind,ro "$root/mnt/text"
mount --bind "$work/data" "$root/mnt/data"
if [ "$caller" = 0 ]; then
  # Groups are for root to drop; in namespaces of a user there are none.
  drop=(--no-new-privs --clear-groups)
  user=(--setgid=65532 --setuid=65532)
else
  drop=(--no-new-privs)
  user=(--user --map-user=65532 --map-group=65532)
fi
exec env -i "${variables[@]}" "$(command -v setpriv)" "${drop[@]}" "$(command -v unshare)" "${user[@]}" --root="$root" --wd=/ "$@"
'

# inside ROOT [VARIABLE=VALUE...] COMMAND...: runs COMMAND in a container of ROOT.
inside() {
  local folder="$1"
  shift
  unshare --mount --pid --fork --kill-child bash -c "$container" container "$folder" "$work" "$model" "$text" "$LLM_SURGEON_USER" "$@"
}

mkdir "$work/data"
[ "$LLM_SURGEON_USER" != 0 ] || chown 65532:65532 "$work/data"

# main_process PID: the process that is 1 in the container that `inside` runs as PID or beneath it.
main_process() {
  local pid="$1"
  until [ "$(awk '/^NSpid:/ { print $NF }' "/proc/$pid/status")" = 1 ]; do
    pid="$(tr -d ' ' <"/proc/$pid/task/$pid/children")"
  done
  printf '%s' "$pid"
}

declare -A process=()

# start SERVICE IMAGE FLAGS...
start() {
  local service="$1" image="$2"
  shift 2
  inside "$roots/$image" "/usr/local/bin/$service" --store /mnt/data/store "$@" >"$work/$service.log" 2>&1 &
  process[$service]=$!
}

# stop SERVICE: as Kubernetes does, SIGTERM to process 1; it has to end well.
stop() {
  local pid="${process[$1]}" status=0
  kill -TERM "$(main_process "$pid")"
  wait "$pid" || status=$?
  [ "$status" = 0 ] || failed "$1: exit code $status after SIGTERM"
}

# wait_for SECONDS CONDITION...
wait_for() {
  local ends=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$ends" ] || return 1
    sleep 0.1
  done
}

# ---- what is in a root -----------------------------------------------------------------------------------------------

# The list: everything that is needed, nothing else. Rights: nobody but root may write, nobody becomes root.
check_files() {
  local image="$1" folder="$roots/$1" loose
  "$python" "$scripts/images_root.py" --check "$image" "$folder"
  loose="$(find "$folder" -xdev ! -type l \( -perm /7000 -o -perm /022 -o ! -perm -444 \) ! -path "$folder/tmp" -printf '%m /%P\n')"
  [ -z "$loose" ] || failed "$image: rights that are too wide or too narrow:" "$loose"
  [ "$(grep -c 'BEGIN CERTIFICATE' "$folder/etc/ssl/certs/ca-certificates.crt")" -ge 100 ] || failed "$image: hardly any certificates"
  ok "$image: all that files need is there, and nothing else; only /tmp may be written to"
}

# The image's own loader finds every library of every file in the image, but for those that the node brings; in their place
# is a stand-in.
check_loader() {
  local image="$1" folder="$roots/$1" file found count=0 library
  mkdir -p "$work/data/node"
  while read -r library; do
    cp "$folder/usr/lib/x86_64-linux-gnu/libc.so.6" "$work/data/node/$library"
  done < <(awk '$2 == "host" { print $1 }' "$root/k8s/images/files.txt")
  while read -r file; do
    case "$file" in */ld-linux-*) continue ;; esac
    found="$(inside "$folder" /lib64/ld-linux-x86-64.so.2 --library-path /mnt/data/node --list "$file" 2>&1)" \
      || failed "$image: the loader cannot load $file: $found"
    ! grep 'not found' <<<"$found" || failed "$image: the loader does not find all that $file needs"
    count=$((count + 1))
  done < <(cd "$folder" && find usr -type f \( -path 'usr/local/bin/*' -o -name '*.so*' \) -printf '/%p\n' | sort)
  rm -r "$work/data/node"
  ok "$image: its loader finds the libraries of all $count files"
}

check_programs() {
  local image="$1" folder="$roots/$1" program version
  for program in "$folder"/usr/local/bin/*; do
    program="$(basename "$program")"
    version="$(inside "$folder" "/usr/local/bin/$program" --version 2>&1)" || failed "$image: $program does not start: $version"
    ok "$image: $version starts"
  done
}

# Whether these checks notice what is missing: without LIBRARY, PROGRAM must not start, and the list must say so.
check_without() {
  local image="$1" library="$2" program="$3" folder="$roots/$1-without" said
  cp --archive --link "$roots/$image" "$folder"
  find "$folder" -name "$library" -delete
  if said="$(inside "$folder" "/usr/local/bin/$program" --version 2>&1)"; then
    failed "$image: $program starts without $library, so starting it proves nothing"
  fi
  grep -q "$library: cannot open shared object file" <<<"$said" || failed "$image: $program without $library says something else: $said"
  if said="$("$python" "$scripts/images_root.py" --check "$image" "$folder" 2>&1)"; then
    failed "$image: the list does not notice that $library is missing"
  fi
  grep -q "needs $library" <<<"$said" || failed "$image: the list says something else: $said"
  rm -rf "$folder"
  ok "$image: without $library $program does not start, and the list notices"
}

# ---- what it does ----------------------------------------------------------------------------------------------------

# https_store ROOT: what the coordinator says of a store behind TLS, where nobody listens.
https_store() {
  inside "$1" AWS_ACCESS_KEY_ID=none AWS_SECRET_ACCESS_KEY=none AWS_REGION=none AWS_ENDPOINT=https://127.0.0.1:9 \
    /usr/local/bin/coordinator --store s3://bucket/prefix 2>&1 || true
}

# The connection must be what fails, not what comes before it for want of certificates.
check_certificates() {
  local said folder="$roots/coordinator-without"
  said="$(https_store "$roots/coordinator")"
  grep -q 'Connection refused' <<<"$said" || failed "coordinator: a store behind TLS: $said"
  cp --archive --link "$roots/coordinator" "$folder"
  rm "$folder/etc/ssl/certs/ca-certificates.crt"
  said="$(https_store "$folder")"
  grep -q 'No CA certificates' <<<"$said" || failed "coordinator: the certificates are gone, and it says: $said"
  rm -rf "$folder"
  ok "coordinator: it finds the certificates for a store behind TLS"
}

both_work() { [ "$(inside "$roots/worker-cpu" /usr/local/bin/llm-surgeon workers 2>/dev/null | grep -cE 'calibrator|surgeon')" -ge 2 ]; }

# Every library of the worker image is in the memory of a process that works.
check_mapped() {
  local mapped library service
  for service in calibrator surgeon; do
    mapped+="$(awk '$6 ~ /\.so/ { print $6 }' "/proc/$(main_process "${process[$service]}")/maps" | sed 's|.*/||' | sort -u)"$'\n'
  done
  while read -r library; do
    grep -qxF "$library" <<<"$mapped" || failed "worker-cpu: nobody has loaded $library: is it needed?"
  done < <(find "$roots/worker-cpu" -name '*.so*' -type f -printf '%f\n')
  ok "worker-cpu: the services have loaded all of the image's libraries"
}

check_run() {
  local began=$SECONDS flags=(/mnt/model --data /mnt/text/calibration --eval-data /mnt/text/heldout --eval-samples 4
    --target-size 0.8 --shots 2 --samples 16 --seq-len 128 --multiple-of 1 --memory 16MiB)
  start coordinator coordinator
  wait_for 30 grep -qs listening "$work/coordinator.log" || failed "the coordinator did not start"
  start calibrator worker-cpu --device cpu --threads 1
  start surgeon worker-cpu --device cpu --threads 1
  wait_for 60 both_work || failed "the workers did not come to the coordinator"
  ok "coordinator, calibrator and surgeon are up, each process 1 of its container"
  inside "$roots/worker-cpu" /usr/local/bin/llm-surgeon submit "${flags[@]}" --out /mnt/data/smaller --follow >"$work/client.log" 2>&1 \
    || failed "the run failed"
  for file in config.json model.safetensors tokenizer.json pruning_report.json; do
    [ -s "$work/data/smaller/$file" ] || failed "the run left no $file"
  done
  check_mapped
  for service in calibrator surgeon coordinator; do
    stop "$service"
  done
  ok "a run over three containers: $(stat -c %s "$model/model.safetensors") bytes of weights became" \
    "$(stat -c %s "$work/data/smaller/model.safetensors"), and SIGTERM ended all three with 0 ($((SECONDS - began)) s)"
  inside "$roots/worker-cpu" /usr/local/bin/llm-surgeon prune "${flags[@]}" --device cpu --threads 1 --quiet --state /mnt/data/alone.state \
    --out /mnt/data/alone >"$work/alone.log" 2>&1 || failed "pruning in one container failed"
  cmp "$work/data/smaller/model.safetensors" "$work/data/alone/model.safetensors" || failed "one container gives other weights than three"
  ok "one container alone gives the same weights"
}

# on_cuda ROOT: what the calibrator says when it must have a GPU.
on_cuda() { inside "$1" /usr/local/bin/calibrator --standalone --listen 127.0.0.1:0 --device cuda:0 2>&1 || true; }

# CUDA support loads without a GPU, or it could not say that it sees none; and not without one of its libraries.
check_cuda() {
  local said folder="$roots/worker-cuda-without"
  said="$(on_cuda "$roots/worker-cuda")"
  grep -q 'libtorch sees 0 GPUs' <<<"$said" || failed "worker-cuda: CUDA support does not load: $said"
  cp --archive --link "$roots/worker-cuda" "$folder"
  find "$folder" -name libcusparseLt.so.0 -delete
  said="$(on_cuda "$folder")"
  grep -q 'libcusparseLt.so.0: cannot open shared object file' <<<"$said" || failed "worker-cuda: without libcusparseLt.so.0 it says: $said"
  rm -rf "$folder"
  ok "worker-cuda: CUDA support loads and sees no GPU; without libcusparseLt.so.0 it does not load"
}

for image in "${images[@]}"; do
  check_files "$image"
  check_loader "$image"
  check_programs "$image"
  case "$image" in
    coordinator)
      check_without coordinator libgcc_s.so.1 coordinator
      check_certificates
      ;;
    worker-cpu) check_without worker-cpu libgomp.so.1 calibrator ;;
    worker-cuda) check_cuda ;;
  esac
done
if [[ " ${images[*]} " == *" coordinator "* && " ${images[*]} " == *" worker-cpu "* ]]; then
  check_run
fi
say "$passed checks passed ($SECONDS s)"
