#!/usr/bin/env bash
# The test suite in .venv: bash scripts/test.sh [pytest arguments]; -m slow runs what is left out otherwise
set -euo pipefail
source "$(dirname "$0")/setup.sh" jets,demo,digits,voices,eval,report,hub,media,tensorboard,flows,molecules,docs,test
# One worker for each core, of one thread: most tests are too small for more. A file's tests stay
# together, as they share what is dear to make.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
