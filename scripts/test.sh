#!/usr/bin/env bash
# Runs the checks and the tests.
#
#   bash scripts/test.sh              what CI runs
#   bash scripts/test.sh --all        the slow tests too
#   bash scripts/test.sh -k adversary any other argument goes to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --tests
. scripts/environment.sh
alum_activate

marker=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [ "$argument" = --all ]; then marker=(); else arguments+=("$argument"); fi
done

ruff check --quiet .
ruff format --check --quiet . || { echo "ruff format would change files: run 'ruff format .'"; exit 1; }
# A file's tests on one core after the other, files side by side.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m pytest -n auto --dist loadfile "${marker[@]}" "${arguments[@]}"
