#!/usr/bin/env bash
# Makes training data of the files that split_corpus.sh wrote: a folder for each.
#
#   bash prepare_shards.sh TEXTS VALID.txt OUT VOCABULARY
#
# VOCABULARY is a folder with GPT-2's BPE (encoder.json, vocab.bpe, dict.txt), data that
# prepare_sentencepiece.sh made, whose vocabulary is taken, or the size of one that sentencepiece
# learns from the first shard.
# OUT will hold a folder for each shard. Run again, it makes those that are missing.
# As a Slurm array the jobs share the shards out among them:
#
#   sbatch --array 0-31 --cpus-per-task 32 --wrap 'bash examples/scale/prepare_shards.sh ...'
#
# Setting: WORKERS, the number of processes (default: all cores that the job has).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 4 "$@"

texts="${1%/}" valid="$2" out="${3%/}" vocabulary="$4"
job="${SLURM_ARRAY_TASK_ID:-0}" jobs="${SLURM_ARRAY_TASK_COUNT:-1}"
export WORKERS="${WORKERS:-${SLURM_CPUS_PER_TASK:-$(nproc)}}"
files=("$texts"/*.txt)
[ -f "${files[0]}" ] || fail "$texts holds no texts: make them with split_corpus.sh"

case "$vocabulary" in
    *[!0-9]* | '') ;;
    *)
        [ "$jobs" -eq 1 ] || [ -d "$out/000" ] \
            || fail "a vocabulary is learnt from the first shard: make that alone, before the array"
        ;;
esac
if [ -f "$vocabulary/encoder.json" ]; then
    prepare=prepare_gpt2
else
    prepare=prepare_sentencepiece
fi
for ((i = job; i < ${#files[@]}; i += jobs)); do
    shard="$out/$(basename "${files[i]}" .txt)"
    [ ! -d "$shard" ] || continue
    bash "$SCALE/../pretraining/$prepare.sh" "${files[i]}" "$valid" "$shard" "$vocabulary"
    case "$vocabulary" in *[!0-9]*) ;; *) vocabulary="$shard" ;; esac
done
