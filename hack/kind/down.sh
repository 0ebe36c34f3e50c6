#!/usr/bin/env bash
# down.sh   Deletes the kind cluster and all that is in it. Nothing happens when there is none.
set -euo pipefail
source "$(dirname "$0")/../lib.sh"
need kind
need_docker

if cluster_exists; then
  step "deleting cluster $KIND_CLUSTER" kind delete cluster --name "$KIND_CLUSTER" --quiet
else
  echo "There is no cluster $KIND_CLUSTER."
fi
