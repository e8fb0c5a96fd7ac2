#!/usr/bin/env bash
# Makes training data of text, with a BPE vocabulary that sentencepiece learns from it.
#
#   bash prepare_sentencepiece.sh TRAIN.txt VALID.txt OUT [VOCAB]
#
# TRAIN.txt and VALID.txt have a sentence or a short paragraph a line, and an empty line between
# documents.
# OUT, a new folder, will hold what fairseq trains on, and sentencepiece.bpe.model.
# VOCAB (default: 8000) is the size of the model's vocabulary, special symbols included; or a folder
# that this script made before, whose vocabulary is taken.
# Setting: WORKERS, the number of processes (default: all cores).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 3 "$@"

prepare sentencepiece "$1" "$2" "$3" --vocab "${4:-8000}"
