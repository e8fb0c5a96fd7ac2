# Sourced by the other scripts: puts the right Python first.
# An active environment that has fairseq is used as it is; else the project's own .venv.

ALUM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ALUM_VENV="$ALUM_ROOT/.venv"

alum_has_fairseq() {
    python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("fairseq") is None)' \
        >/dev/null 2>&1
}

alum_uses_active_environment() {
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ "${VIRTUAL_ENV:-}" != "$ALUM_VENV" ] \
        && alum_has_fairseq
}

alum_activate() {
    if ! alum_uses_active_environment; then
        # shellcheck disable=SC1091
        . "$ALUM_VENV/bin/activate"
    fi
    # Else the C library (glibc) gives the memory of every tensor back to the system, to be faulted
    # in again page by page for the next one.
    export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-1099511627776}"
}
