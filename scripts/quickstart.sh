#!/usr/bin/env bash
# The main job on a fresh machine: bash scripts/quickstart.sh [overrides of the recipe, e.g. --train.steps 200]
# The run's folder is runs/digits, or $MMTOK_RUN. Called again, each verb says what stands and redoes nothing.
set -euo pipefail
source "$(dirname "$0")/setup.sh" jets,demo,digits,eval,report
run=${MMTOK_RUN:-runs/digits}
.venv/bin/mmtok train recipes/digits.py --out "$run" "$@"
.venv/bin/mmtok evaluate "$run"
.venv/bin/python scripts/bars.py "$run/evaluation.json"
.venv/bin/mmtok report "$run"
