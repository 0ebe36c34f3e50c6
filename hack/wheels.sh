#!/usr/bin/env bash
# wheels.sh operator|trainer   Collects the wheels of one image into wheels/<image>/, where its Dockerfile finds them.
#
# They are fetched with this machine's pip, so that its settings (a proxy, a mirror, a folder with the CPU build of
# torch) count for the image too, and in the versions that the virtual environment has, so that the image runs what
# the tests ran. Nothing happens when nothing changed.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

image=$1
to=$ROOT/wheels/$image
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
"$PYTHON" "$ROOT/hack/requirements.py" "$image" --pinned >"$wanted"

if cmp -s "$wanted" "$to/requirements.lock"; then
  echo "    wheels/$image is up to date"
  exit 0
fi
rm -rf "$to"/*.whl "$to/requirements.lock"
"$PYTHON" -m pip wheel -qq --no-deps --wheel-dir "$to" --requirement "$wanted" \
  --requirement <("$PYTHON" "$ROOT/hack/requirements.py" build-system)
install -m 644 "$wanted" "$to/requirements.lock"
