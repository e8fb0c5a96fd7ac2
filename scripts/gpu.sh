#!/usr/bin/env bash
# All that a GPU can tell, in one command: are the numbers right, what does it cost, does it learn?
#
#   bash scripts/gpu.sh            some 8 minutes; writes docs/gpu/CARD.md and docs/gpu/CARD.json
#   bash scripts/gpu.sh --quick    a rehearsal of all steps with tiny models, on a CPU as well
#   bash scripts/gpu.sh --help     its options
#   bash scripts/gpu.sh --wheels   for a machine without a package index, whose Python has torch:
#                                  makes .wheels/ here, which travels there with the clone. ALUM_PYTHON
#                                  names a Python of that machine's version (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WHEELS=.wheels
INSTALLED=.gpu-packages

# What fairseq needs beside torch and what comes with it; torch is only there to build it with.
make_wheels() {
    local scratch
    scratch="$(mktemp -d)"
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    "${ALUM_PYTHON:-python3}" -m venv "$scratch/venv"
    . "$scratch/venv/bin/activate"
    pip install --quiet "${ALUM_TORCH:-torch==2.13.0}" "numpy>=2,<3" "cython>=3,<4" "setuptools>=77,<80" wheel
    rm -rf "$WHEELS"
    CFLAGS=-g0 pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$WHEELS" \
        fairseq-fixed==0.12.3.1 hydra-core==1.3.2 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3 \
        bitarray "sentencepiece>=0.2.3,<0.3" "protobuf>=7.36,<8" hypothesis sortedcontainers \
        pytest-xdist execnet
    du -sh "$WHEELS"
}

case " $* " in
    *" --wheels "*) make_wheels; exit ;;
esac

if [ -d "$WHEELS" ] && [ ! -d .venv ]; then
    [ -d "$INSTALLED" ] || python3 -m pip install --quiet --no-index --no-deps --no-build-isolation \
        --target "$INSTALLED" "$WHEELS"/*.whl .
    rm -rf alum_fairseq.egg-info
    export PYTHONPATH="$PWD/$INSTALLED" PATH="$PWD/$INSTALLED/bin:$PATH"
    exec python3 scripts/gpu_report.py "$@"
fi
bash scripts/setup.sh
. scripts/environment.sh
alum_activate
exec python scripts/gpu_report.py "$@"
