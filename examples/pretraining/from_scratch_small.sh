#!/usr/bin/env bash
# Trains a small RoBERTa from scratch on a CPU: 200 updates without the adversary, then 200 with it.
#
#   bash from_scratch_small.sh DATA SAVE_DIR [OPTION...]
#
# DATA is what prepare_sentencepiece.sh or prepare_gpt2.sh made. Run again, it goes on where it was.
# Further options go to fairseq-train, and win over the recipe's.
# Setting: PRESET, the adversary (default: calibrated).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 2 "$@"

pretrain "$1" "$2" --cpu --num-workers 0 \
    --arch roberta --encoder-layers 3 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 \
    --encoder-attention-heads 4 --max-positions 128 --tokens-per-sample 128 \
    --sample-break-mode none --batch-size 8 --lr 1e-3 --warmup-updates 40 \
    --max-update 400 --total-num-update 400 --alum-start-update 200 \
    --log-interval 20 --alum-log-gain-interval 20 "${@:3}"
