#!/usr/bin/env bash
# step.sh "what is done" command...   Says what is done, does it, and says how long it took.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
step "$@"
