#!/usr/bin/env bash
# The test suite in .venv: bash scripts/test.sh [pytest arguments]; -m slow runs what is left out otherwise
set -euo pipefail
source "$(dirname "$0")/setup.sh" jets,demo,voices,eval,report,hub,media,tensorboard,docs,test
exec .venv/bin/python -m pytest "$@"
