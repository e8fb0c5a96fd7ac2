# Sourced by the recipes: what they have in common.

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# need_arguments COUNT "$@": without them, print the comment at the top of the recipe.
need_arguments() {
    local count="$1"
    shift
    if [ "$#" -lt "$count" ]; then
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
        exit 2
    fi
}

# fairseq as it is found; else that of the project's own environment.
find_fairseq() {
    command -v fairseq-train >/dev/null && return
    [ -x "$HERE/../../.venv/bin/fairseq-train" ] \
        || fail "fairseq-train is not on the PATH: activate your environment, or run" \
            "'bash scripts/setup.sh'"
    # shellcheck disable=SC1091
    . "$HERE/../../.venv/bin/activate"
}

# prepare KIND TRAIN VALID OUT [OPTION...]: encode and binarise text. OUT comes into being in one
# piece at the end, or not at all.
prepare() {
    local kind="$1" train="$2" valid="$3" out="${4%/}"
    shift 4
    local workers="${WORKERS:-$(nproc 2>/dev/null || echo 2)}"
    [ ! -e "$out" ] || fail "$out exists: remove it, or name another folder"
    find_fairseq
    mkdir -p "$(dirname "$out")"
    unfinished="$(mktemp -d "$out.unfinished.XXXXXX")"
    trap 'rm -rf "$unfinished"' EXIT
    python "$HERE/encode.py" "$kind" "$train" "$valid" "$unfinished" --workers "$workers" "$@" \
        || exit 1
    fairseq-preprocess --only-source --srcdict "$unfinished/dict.txt" \
        --trainpref "$unfinished/train" --validpref "$unfinished/valid" \
        --destdir "$unfinished/binary" --workers "$workers" >"$unfinished/log" 2>&1 \
        || { tail -n 20 "$unfinished/log" >&2; fail "fairseq-preprocess failed"; }
    find "$unfinished" -maxdepth 1 -name '*.model' -exec mv {} "$unfinished/binary/" \;
    mv "$unfinished/binary" "$out"
    grep -oE '(train|valid): [0-9]+ sents.*' "$unfinished/log" || true
    echo "wrote $out"
}

# pretrain DATA SAVE_DIR [OPTION...]: the options that all recipes share, then those given, of
# which fairseq takes the last.
pretrain() {
    local data="$1" save_dir="$2"
    shift 2
    [ -f "${data%%:*}/dict.txt" ] \
        || fail "$data has no dict.txt: make it with prepare_sentencepiece.sh or prepare_gpt2.sh"
    find_fairseq
    local options=(
        # The adversary. This project's is 'calibrated'; for the numbers and the rule of
        # Liu et al. 2020 write 'paper', for those of their released code 'reference'.
        --alum-preset "${PRESET:-calibrated}"

        --user-dir alum_fairseq --task alum_masked_lm --criterion alum_mlm
        --dropout 0.1 --attention-dropout 0.1
        --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.01
        --clip-norm 0.0 --lr-scheduler polynomial_decay
        --log-format json --no-epoch-checkpoints
    )
    exec fairseq-train "$data" --save-dir "$save_dir" "${options[@]}" "$@"
}

# pretrain_on_gpus DATA SAVE_DIR [OPTION...]: updates of 256 sequences of 512 tokens on any number of
# GPUs, each of which takes BATCH sequences at a time.
pretrain_on_gpus() {
    local data="$1" save_dir="$2" gpus="${GPUS:-}" batch="${BATCH:-8}" precision=()
    shift 2
    find_fairseq
    [ -n "$gpus" ] \
        || gpus="$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')"
    case "$gpus$batch" in *[!0-9]*) fail "GPUS=$gpus, BATCH=$batch: they must be numbers" ;; esac
    { [ "$gpus" -gt 0 ] && [ "$batch" -gt 0 ] && [ "$((256 % (gpus * batch)))" -eq 0 ]; } \
        || fail "256 sequences do not divide into batches of $batch on $gpus GPUs: set BATCH"
    case "${PRECISION:=fp16}" in
        fp16 | bf16 | amp) precision=("--$PRECISION") ;;
        fp32) ;;
        *) fail "PRECISION=$PRECISION: it must be fp16, bf16, amp or fp32" ;;
    esac
    pretrain "$data" "$save_dir" "${precision[@]}" \
        --tokens-per-sample 512 --max-positions 512 \
        --sample-break-mode complete --skip-invalid-size-inputs-valid-test \
        --distributed-world-size "$gpus" --batch-size "$batch" \
        --update-freq "$((256 / (gpus * batch)))" \
        --save-interval-updates 5000 --keep-interval-updates 2 --log-interval 100 "$@"
}

# continue_pretraining DATA SAVE_DIR RESTORE [OPTION...]: the schedule of Liu et al. 2020.
continue_pretraining() {
    local data="$1" save_dir="$2" restore="$3"
    shift 3
    [ -f "$restore" ] || fail "$restore: there is no such file"
    # Takes the weights alone, as --restore-file with all of --reset-* does, but at the first start
    # only: a second start goes on from SAVE_DIR.
    pretrain_on_gpus "$data" "$save_dir" --finetune-from-model "$restore" \
        --lr 4e-5 --warmup-updates 10000 --max-update 100000 --total-num-update 100000 "$@"
}
