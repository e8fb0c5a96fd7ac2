#!/usr/bin/env bash
# Trains a RoBERTa of BERT-base's size from scratch on GPUs, with the curriculum of Liu et al. 2020:
# 500,000 updates without the adversary, then 500,000 with it.
#
#   bash from_scratch_base.sh DATA SAVE_DIR [OPTION...]
#
# DATA is what prepare_sentencepiece.sh or prepare_gpt2.sh made. Run again, it goes on where it was.
# Further options go to fairseq-train, and win over the recipe's.
# Settings: GPUS (default: all), BATCH (sequences on a GPU at a time, default: 8), PRECISION
# (fp16, bf16, amp, fp32; default: fp16), PRESET, the adversary (default: calibrated).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 2 "$@"

pretrain_on_gpus "$1" "$2" --arch roberta_base --lr 1e-4 --warmup-updates 10000 \
    --max-update 1000000 --total-num-update 1000000 --alum-start-update 500000 "${@:3}"
