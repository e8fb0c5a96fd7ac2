#!/usr/bin/env bash
# Pre-trains on several machines without a scheduler; the same command on each of them. When a rank
# is lost, torchrun ends the others and starts all of them again, from the last checkpoint.
#
#   NODES=2 HEAD=10.0.0.1 bash train_torchrun.sh RECIPE DATA SAVE_DIR [ARGUMENT...]
#
# RECIPE is one of examples/pretraining for GPUs; DATA is the folder of shards that
# prepare_shards.sh made, or one of them; SAVE_DIR must be one that all machines see; further
# arguments are the recipe's own (RESTORE, then options of fairseq-train).
# Settings: those of the recipe, where GPUS is the number in one machine; NODES (default: 1); HEAD,
# one of the machines (default: localhost); SAVE_EVERY (default: 500), updates between two
# checkpoints; RESTARTS (default: 100).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 3 "$@"

recipe="$(recipe_named "$1")"
data="$(join_shards "$2")"
find_fairseq
here="${GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')}"
[ "$here" -gt 0 ] || fail "no GPU was found: fairseq takes torchrun's ranks for numbers of GPUs"
export GPUS="$((${NODES:-1} * here))"
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "$here" --max-restarts "${RESTARTS:-100}" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost}:29400" --rdzv-id alum \
    --no-python bash "$recipe" "$data" "${@:3}" --save-interval-updates "${SAVE_EVERY:-500}"
