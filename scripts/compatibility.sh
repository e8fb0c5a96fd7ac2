#!/usr/bin/env bash
# Sets the project up with several Pythons and torches, and runs a part of the tests with each.
#
#   bash scripts/compatibility.sh                    the pairs below
#   bash scripts/compatibility.sh 3.12=2.13.0 ...    these: Python=torch
#
# In copies of the clone under ALUM_SCRATCH (default: a temporary folder, removed at the end), some
# 2 GB and minutes each. A Python that is not installed is skipped. Ends with a table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PAIRS=(3.11=2.13.0 3.12=2.13.0 3.13=2.13.0 3.11=2.6.0)
TESTS=(tests/scripts/test_compat.py tests/adversarial tests/encoder
    tests/criterions/test_alum_mlm.py tests/criterions/test_alum_sentence_prediction.py
    tests/criterions/test_recorded_numbers.py tests/predict/test_predict.py
    tests/commands/test_hostile_files.py tests/training/test_stock_fairseq.py)
[ $# = 0 ] || PAIRS=("$@")

if [ -n "${ALUM_SCRATCH:-}" ]; then
    scratch="$ALUM_SCRATCH"
    mkdir -p "$scratch"
else
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
fi

find_python() { # 3.12: a command of that name, or one of pyenv's
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if "$candidate" -c '' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# One pair, in a copy of what git knows of; prints how it went.
try() {
    local version="$1" torch="$2" folder="$scratch/$1-$2" python
    python="$(find_python "$version")" || { echo "skipped: no Python $version is installed"; return; }
    mkdir -p "$folder"
    git ls-files --cached --others --exclude-standard -z | xargs -0 cp --parents -t "$folder"
    cd "$folder"
    unset VIRTUAL_ENV CONDA_PREFIX
    if ! ALUM_PYTHON="$python" ALUM_TORCH="torch==$torch" bash scripts/setup.sh >setup.log 2>&1; then
        echo "set-up failed: $(grep -v '^ *$' setup.log | tail -n 1)"
        return
    fi
    OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q "${TESTS[@]}" >tests.log 2>&1 || true
    tail -n 1 tests.log
}

rows=()
for pair in "${PAIRS[@]}"; do
    echo "Python ${pair%=*} with torch ${pair#*=} ..." >&2
    rows+=("$(printf '%-8s %-9s %s' "${pair%=*}" "${pair#*=}" "$(try "${pair%=*}" "${pair#*=}")")")
done
printf '\n%-8s %-9s %s\n' Python torch result
printf '%s\n' "${rows[@]}"
