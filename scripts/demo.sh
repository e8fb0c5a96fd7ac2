#!/usr/bin/env bash
# Fine-tunes a real encoder on film reviews, plainly and with ALUM, and attacks both.
#
#   bash scripts/demo.sh                  everything; run again, it goes on, or shows the result
#   bash scripts/demo.sh --pretraining    pre-trains a small model from scratch instead
#   bash scripts/demo.sh --help           its options
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

for argument in "$@"; do
    case "$argument" in
        -h | --help) exec python3 "$root/examples/demo/options.py" --help ;;
    esac
done

bash "$root/scripts/setup.sh"
. "$root/scripts/environment.sh"
alum_activate
exec python "$root/examples/demo/run.py" "$@"
