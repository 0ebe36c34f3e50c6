#!/usr/bin/env bash
# images.sh   Builds finetune-operator:dev and finetune-trainer:dev. Needs Docker and the virtual environment (make venv).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
need_docker

build() { # image, Dockerfile
  docker build --quiet --network "$IMAGE_BUILD_NETWORK" --build-arg PYTHON_IMAGE="$PYTHON_IMAGE" \
    --tag "$1" --file "$ROOT/$2" "$ROOT" >/dev/null
}

step "collecting the wheels of the operator's image" "$ROOT/hack/wheels.sh" operator
step "building $OPERATOR_IMAGE from $PYTHON_IMAGE" build "$OPERATOR_IMAGE" operator/Dockerfile
step "collecting the wheels of the trainer's image (about 250 MB, the first time 1 minute)" "$ROOT/hack/wheels.sh" trainer
step "building $TRAINER_IMAGE from $PYTHON_IMAGE (the first time 2 minutes)" build "$TRAINER_IMAGE" trainer_image/Dockerfile
