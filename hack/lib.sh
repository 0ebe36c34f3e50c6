# Shared by the scripts in this folder: the settings that the environment may override, and timed steps.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

KIND_CLUSTER=${KIND_CLUSTER:-finetune}
KIND_NODE_IMAGE=${KIND_NODE_IMAGE:-kindest/node:v1.34.3}
PYTHON_IMAGE=${PYTHON_IMAGE:-python:3.11-slim}
S3_IMAGE=${S3_IMAGE:-versity/versitygw:v1.8.0}
PROMETHEUS_IMAGE=${PROMETHEUS_IMAGE:-prom/prometheus:v3.5.0}
IMAGE_BUILD_NETWORK=${IMAGE_BUILD_NETWORK:-default}
OPERATOR_IMAGE=finetune-operator:dev
TRAINER_IMAGE=finetune-trainer:dev
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
export DOCKER_BUILDKIT=1

# step "what is done" command...   prints what is done before, and how long it took after.
step() {
  local what=$1 begin=$SECONDS
  shift
  printf '==> %s\n' "$what"
  "$@"
  printf '    done in %d s\n' $((SECONDS - begin))
}

# need TOOL...   ends the script with a message that names every tool that is missing.
need() {
  local tool missing=()
  for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  if [ ${#missing[@]} -gt 0 ]; then
    echo "not on the PATH: ${missing[*]}. Install them and run this again." >&2
    exit 1
  fi
}

need_docker() {
  need docker
  docker info >/dev/null 2>&1 || { echo "the Docker engine does not answer: start it and run this again." >&2; exit 1; }
}

cluster_exists() { kind get clusters 2>/dev/null | grep -qx "$KIND_CLUSTER"; }
