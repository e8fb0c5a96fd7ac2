#!/usr/bin/env bash
# Compares the adversaries of the presets on three trained models: the demo's language model, one
# that stock fairseq trains here on the same text with dropout (5 to 9 minutes on 2 cores), and the
# demo's classifier. After `bash scripts/demo.sh` and `bash scripts/demo.sh --pretraining`:
#
#   bash examples/presets/compare.sh [OUTPUT]    default: demo-output/presets
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
demo=demo-output
pretraining="$demo/pretraining"
data="$pretraining/data"
output="${1:-$demo/presets}"
[ -f "$data/dict.txt" ] || { echo "$data is missing: run 'bash scripts/demo.sh --pretraining'" >&2; exit 1; }
[ -d "$demo/data" ] || { echo "$demo/data is missing: run 'bash scripts/demo.sh'" >&2; exit 1; }
bash scripts/setup.sh
. scripts/environment.sh
alum_activate

mkdir -p "$output"
echo "training; the log is $output/log"
fairseq-train "$data" --user-dir alum_fairseq --task masked_lm --criterion masked_lm --cpu \
    --arch roberta --encoder-layers 3 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 \
    --encoder-attention-heads 4 --max-positions 130 --tokens-per-sample 128 \
    --sample-break-mode none --dropout 0.1 --attention-dropout 0.1 --batch-size 16 \
    --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --clip-norm 1.0 \
    --lr 2e-3 --lr-scheduler polynomial_decay --warmup-updates 150 --total-num-update 1500 \
    --max-update 1500 --disable-validation --no-epoch-checkpoints --seed 1 --num-workers 0 \
    --log-format simple --log-interval 100 --save-dir "$output" >"$output/log" 2>&1
python examples/presets/compare.py \
    "$pretraining/models/plain/checkpoint_last.pt" "$data" \
    "$output/checkpoint_last.pt" "$data" \
    "$demo/data/plain/checkpoint_last.pt" "$demo/data" \
    --examples 32 --json "$output/compare.json" 2>>"$output/log"
