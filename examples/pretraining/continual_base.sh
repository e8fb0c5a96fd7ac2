#!/usr/bin/env bash
# Continues the pre-training of the released roberta.base with the adversary, on GPUs.
#
#   bash continual_base.sh DATA SAVE_DIR RESTORE [OPTION...]
#
# DATA is what prepare_gpt2.sh made; RESTORE is the model.pt of roberta.base. Run again, it goes on
# where it was. Further options go to fairseq-train, and win over the recipe's.
# Settings: GPUS (default: all), BATCH (sequences on a GPU at a time, default: 8), PRECISION
# (fp16, bf16, amp, fp32; default: fp16), PRESET, the adversary (default: calibrated).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 3 "$@"

continue_pretraining "$1" "$2" "$3" --arch roberta_base "${@:4}"
