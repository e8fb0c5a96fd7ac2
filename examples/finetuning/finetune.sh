#!/usr/bin/env bash
# Fine-tunes a RoBERTa with the adversary, by RoBERTa's published settings for the data set.
#
#   bash finetune.sh TASK DATA SAVE_DIR MODEL [OPTION...]
#
# TASK is cola, sst_2, mrpc, qqp, sts_b, mnli, qnli, rte, snli, scitail or anli.
# DATA is what 'alum-prepare --task TASK' made; MODEL is the model.pt of roberta.large, or any
# checkpoint of that size. Run again, it goes on where it was. Further options go to fairseq-train,
# and win over the recipe's.
# Settings: ARCH (default: roberta_large), GPUS (default: 1), BATCH (sequences on a GPU at a time,
# default: as many as fit the published batch), PRECISION (fp16, bf16, amp, fp32; default: fp16),
# PRESET, the adversary (default: calibrated).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../pretraining/common.sh"
need_arguments 4 "$@"

task="$1" data="$2" save_dir="$3" model="$4"
shift 4

# Classes, peak learning rate, sequences an update, updates (10 epochs), updates of warm-up, and what
# the best checkpoint is chosen by. Liu et al. 2019 (RoBERTa), table 10, gives the ranges; the
# values are those of fairseq's examples/roberta/README.glue.md, for base and large alike.
case "$task" in
    cola) numbers=(2 1e-5 16 5336 320 mcc) ;;
    sst_2) numbers=(2 1e-5 32 20935 1256 accuracy) ;;
    # For mrpc, rte and sts_b the authors start from their model for mnli, not from the pre-trained
    # one: give MODEL the checkpoint_best.pt of mnli. Its head is left behind.
    mrpc) numbers=(2 1e-5 16 2296 137 acc_and_f1) ;;
    rte) numbers=(2 2e-5 16 2036 122 accuracy) ;;
    sts_b) numbers=(1 2e-5 16 3598 214 pearson_and_spearman) ;;
    qqp) numbers=(2 1e-5 32 113272 28318 acc_and_f1) ;;
    mnli) numbers=(3 1e-5 32 123873 7432 accuracy) ;;
    qnli) numbers=(2 1e-5 32 33112 1986 accuracy) ;;
    # Not published with RoBERTa: as mnli, 10 epochs of 549,367, 23,596 and 162,865 examples, 6% of
    # them warm-up.
    snli) numbers=(3 1e-5 32 171680 10301 accuracy) ;;
    scitail) numbers=(2 1e-5 32 7380 443 accuracy) ;;
    anli) numbers=(3 1e-5 32 50900 3054 accuracy) ;;
    *) fail "TASK is $task: it must be cola, sst_2, mrpc, qqp, sts_b, mnli, qnli, rte, snli," \
        "scitail or anli" ;;
esac
classes="${numbers[0]}" lr="${numbers[1]}" sequences="${numbers[2]}" updates="${numbers[3]}"
warmup="${numbers[4]}" metric="${numbers[5]}"
case "$metric" in
    accuracy) report=() ;;
    mcc) report=(--report-mcc) ;;
    acc_and_f1) report=(--report-acc-and-f1) ;;
    pearson_and_spearman) report=(--regression-target --report-pearson-and-spearman) ;;
esac

[ -f "$data/input0/dict.txt" ] || fail "$data has no input0/dict.txt: make it with alum-prepare"
[ -f "$model" ] || fail "$model: there is no such file"
gpus="${GPUS:-1}"
case "$gpus" in *[!0-9]* | 0) fail "GPUS=$gpus: it must be a number, 1 or more" ;; esac
batch="${BATCH:-$((sequences / gpus))}"
case "$batch" in *[!0-9]*) fail "BATCH=$batch: it must be a number" ;; esac
{ [ "$batch" -gt 0 ] && [ "$((sequences % (gpus * batch)))" -eq 0 ]; } \
    || fail "$sequences sequences do not divide into batches of $batch on $gpus GPUs: set BATCH or" \
        "GPUS"
precision=()
case "${PRECISION:=fp16}" in
    fp16 | bf16 | amp) precision=("--$PRECISION") ;;
    fp32) ;;
    *) fail "PRECISION=$PRECISION: it must be fp16, bf16, amp or fp32" ;;
esac

options=(
    # The adversary. This project's is 'calibrated'; for the numbers and the rule of Liu et al. 2020
    # write 'paper', for those of their released code 'reference'. All have alpha 1 in fine-tuning,
    # the paper's.
    --alum-preset "${PRESET:-calibrated}"

    --user-dir alum_fairseq --task alum_sentence_prediction --criterion alum_sentence_prediction
    --num-classes "$classes" --init-token 0 --separator-token 2 --max-positions 512
    # Takes the weights alone, and at the first start only: a second start goes on from SAVE_DIR.
    --finetune-from-model "$model"
    --arch "${ARCH:-roberta_large}" --dropout 0.1 --attention-dropout 0.1
    --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.1 --clip-norm 0.0
    --lr-scheduler polynomial_decay --lr "$lr" --warmup-updates "$warmup"
    --max-update "$updates" --total-num-update "$updates" --max-epoch 10
    --distributed-world-size "$gpus" --find-unused-parameters
    --batch-size "$batch" --update-freq "$((sequences / (gpus * batch)))"
    --max-tokens 4400 --required-batch-size-multiple 1
    "${precision[@]}" --fp16-init-scale 4 --threshold-loss-scale 1 --fp16-scale-window 128
    "${report[@]}" --best-checkpoint-metric "$metric" --maximize-best-checkpoint-metric
    --no-epoch-checkpoints --log-format json --log-interval 100
)
find_fairseq
exec fairseq-train "$data" --save-dir "$save_dir" "${options[@]}" "$@"
