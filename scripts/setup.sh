#!/usr/bin/env bash
# Installs everything that the project needs; run again, it takes seconds.
#
#   bash scripts/setup.sh
#   bash scripts/setup.sh --tests    in an environment of your own: the tools of the tests, too
#
# Into .venv, with the tools of the tests, or into the active environment if that already has fairseq
# (which is never replaced). The first time it takes some 10 minutes, and 2 GB of disk with torch for
# the CPU, more than 4 GB with torch for CUDA.
# Settings, all optional:
#   ALUM_PYTHON   the Python that .venv is made of (default: the first of python3, python3.11,
#                 python3.12 that is 3.11 or newer)
#   ALUM_TORCH    what pip is told to install as torch (default: torch==2.13.0, which on Linux is
#                 the build for CUDA), for instance 'torch==2.13.0 --index-url URL' with the URL that
#                 pytorch.org names for your CUDA, or for the CPU: it ends in /cpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh

# Tested together. fairseq 0.12.2 cannot be imported on Python 3.11 and later, hence fairseq-fixed
# (the same import name); its build imports torch and numpy, hence the order and no isolation.
TORCH="${ALUM_TORCH:-torch==2.13.0}"
BUILD_TOOLS=("numpy>=1.26,<3" "cython>=3,<4" "setuptools>=77,<90" "wheel<1")
FAIRSEQ="fairseq-fixed==0.12.3.1"
NEEDED=("sentencepiece>=0.2,<0.3" "protobuf>=7.36,<8" "tokenizers>=0.20,<0.24" "safetensors>=0.4,<1"
    "tqdm>=4,<5" "matplotlib>=3.8,<4" "Jinja2>=3.1,<4" "scipy>=1.11,<2")
TEST_TOOLS=("transformers>=5,<6" "accelerate>=1.1,<2" "pytest>=8,<10" "pytest-xdist>=3,<4" "hypothesis>=6,<7"
    "ruff>=0.12,<0.18" "foolbox>=3.3,<4" "markdown-it-py>=3,<5" "nltk>=3.9,<4" "scikit-learn>=1.3,<2"
    "mkdocs-material>=9.5,<10" "torchmetrics>=1.6,<2" "seqeval>=1.2,<2")
tests=no
case "${1:-}" in
    --tests) tests=yes ;;
    ?*) echo "setup: $1 is unknown: it must be --tests, or nothing" >&2; exit 2 ;;
esac

log="$(mktemp)"
trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null || true' EXIT

# step WHAT COMMAND...: on a terminal with the seconds so far, and what the command said last.
step() {
    local what="$1" begun=$SECONDS
    shift
    printf '%s ... ' "$what"
    "$@" >"$log" 2>&1 &
    while [ -t 1 ] && kill -0 $! 2>/dev/null; do
        printf '\r\033[K%.75s' "$what ... $((SECONDS - begun)) s  $(tail -n 1 "$log" | tr -d '\r')"
        sleep 0.5
    done
    [ ! -t 1 ] || printf '\r\033[K%s ... ' "$what"
    if wait $!; then
        printf 'done (%s s)\n' "$((SECONDS - begun))"
    else
        printf 'failed. What it printed last:\n\n'
        tail -n 30 "$log"
        exit 1
    fi
}

new_enough() {
    "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${ALUM_PYTHON:-python3 python3.11 python3.12}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python from 3.11 to 3.13 was found (tried ${ALUM_PYTHON:-python3, python3.11," \
        "python3.12}): install one, or name it with ALUM_PYTHON=/path/to/python" >&2
    return 1
}

# What the environment was last set up from; a change of any of it sets that part up again.
wanted_tools() {
    { cat scripts/setup.sh; echo "$TORCH $tests"; } | cksum
}
wanted_plugin() {
    { cat setup.py; find alum_commands alum_fairseq \( -name '*.py' -o -name '*.jinja' -o -name '*.json' \) -exec cksum {} + | LC_ALL=C sort; } | cksum
}

install_tools() {
    if alum_uses_active_environment; then
        echo "setup: using the active environment, which has fairseq"
    else
        local python
        python="$(find_python)"
        [ -x "$ALUM_VENV/bin/python" ] \
            || step "making .venv with $python" "$python" -m venv "$ALUM_VENV"
        alum_activate
        step "updating pip" python -m pip install --upgrade pip
        # shellcheck disable=SC2086  # ALUM_TORCH may hold pip's options
        step "installing torch" python -m pip install $TORCH
        step "installing build tools" python -m pip install "${BUILD_TOOLS[@]}"
        step "building fairseq (about 4 minutes the first time)" \
            python -m pip install --no-build-isolation "$FAIRSEQ"
        # fairseq brings it along for speech, built for another torch; transformers fails over it.
        if python -m pip show --quiet torchaudio && ! python -c 'import torchaudio'; then
            step "removing a torchaudio that does not load" \
                python -m pip uninstall --yes torchaudio
        fi 2>/dev/null
    fi
    step "installing what the plugin needs" python -m pip install "${NEEDED[@]}"
    [ "$tests" = no ] || step "installing the tools of the tests" \
        python -m pip install "${TEST_TOOLS[@]}"
}

# Not editable: fairseq looks for `--user-dir alum_fairseq` beside its own folder.
install_plugin() {
    local isolation=()
    python -c 'import setuptools, wheel' 2>/dev/null && isolation=(--no-build-isolation)
    rm -rf alum_fairseq.egg-info
    step "installing alum_fairseq" \
        python -m pip install --no-deps --force-reinstall "${isolation[@]}" .
    rm -rf alum_fairseq.egg-info
    (cd / && step "checking that fairseq and the plugin load" \
        python -W ignore -c 'from alum_fairseq import requirements; requirements.require_fairseq()')
}

if alum_uses_active_environment; then
    prefix="$(python -c 'import sys; print(sys.prefix)')"
    ready="the active environment is ready"
else
    prefix="$ALUM_VENV"
    ready=".venv is ready; use it with: . .venv/bin/activate"
    tests=yes
fi
tools_stamp="$prefix/.alum_fairseq_tools"
plugin_stamp="$prefix/.alum_fairseq_plugin"

if [ "$(wanted_tools)" != "$(cat "$tools_stamp" 2>/dev/null)" ]; then
    install_tools
    wanted_tools >"$tools_stamp"
    rm -f "$plugin_stamp"
fi
alum_activate
if [ "$(wanted_plugin)" != "$(cat "$plugin_stamp" 2>/dev/null)" ]; then
    install_plugin
    wanted_plugin >"$plugin_stamp"
fi
echo "setup: $ready"
