#!/usr/bin/env bash
# Renders base, overlays and examples of k8s/ as kubectl does, and checks them: Kubernetes' schemas (kubernetes-validate), those
# of custom resources, and what no schema knows (scripts/k8s_check), also on copies that are broken on purpose. No cluster.
#
#   k8s.sh            flags and variables as the built programs' --help has them
#   k8s.sh FOLDER     those of the programs in FOLDER
#   k8s.sh --render FOLDER   only renders, into FOLDER
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export PYTHONDONTWRITEBYTECODE=1

# Kinds whose schemas kubernetes-validate does not have; k8s_check does.
custom='api version (cert-manager\.io|jobset\.x-k8s\.io|kueue\.x-k8s\.io|monitoring\.coreos\.com)/'

# kustomize FOLDER-BELOW-K8S...: the objects of all, one after the other.
kustomize() {
  local part said
  for part in "$@"; do
    said="$work/said"
    kubectl kustomize "$root/k8s/$part" 2>"$said" || die "k8s/$part cannot be rendered" "$(cat "$said")"
    [ ! -s "$said" ] || die "kustomize complains about k8s/$part" "$(cat "$said")"
    echo '---'
  done
}

# render FOLDER: what is applied together is one file in FOLDER.
render() {
  local overlay
  kustomize base >"$1/base.yaml"
  for overlay in "$root"/k8s/overlays/*/; do
    overlay="$(basename "$overlay")"
    kustomize "overlays/$overlay" >"$1/$overlay.yaml"
  done
  kustomize base submit/plain >"$1/submit-plain.yaml"
  kustomize overlays/mtls submit/mtls >"$1/submit-mtls.yaml"
  kustomize examples/own submit/mtls >"$1/own.yaml"
}

# validate FILE: against the newest Kubernetes that kubernetes-validate has.
validate() {
  local said
  said="$("$validator" --strict -k "$newest" "$1" 2>&1)" || die "Kubernetes $newest would refuse $(basename "$1")" "$(grep -v ' passed ' <<<"$said")"
  said="$(grep -v ' passed ' <<<"$said" | grep -Ev "$custom" || true)"
  [ -z "$said" ] || die "Kubernetes $newest does not know all of $(basename "$1")" "$said"
}

command -v kubectl >/dev/null \
  || die "kubectl is missing" "on Debian and Ubuntu: apt-get install kubernetes-client; elsewhere: https://kubernetes.io/docs/tasks/tools"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

if [ "${1:-}" = --render ]; then
  [ -d "${2:-}" ] || die "--render wants a folder that exists" "mkdir it"
  render "$2"
  exit
fi
programs="${1:-$(dirname "$("$scripts/binary.sh")")}"
lock_cache
interpreter="$(environment k8s)"
unlock_cache
validator="$(dirname "$interpreter")/kubernetes-validate"
newest="$("$interpreter" -c 'import kubernetes_validate as k; print(k.latest_version())')"

mkdir "$work/rendered"
render "$work/rendered"
for file in "$work"/rendered/*.yaml; do
  validate "$file"
done
"$interpreter" "$scripts/k8s_check" --programs "$programs" "$work"/rendered/*.yaml
"$interpreter" "$scripts/k8s_check" --programs "$programs" --self-test "$work"/rendered/*.yaml
say "$(find "$work/rendered" -name '*.yaml' | wc -l) deployments are as Kubernetes $newest and the programs want them; every check finds what it is for"
