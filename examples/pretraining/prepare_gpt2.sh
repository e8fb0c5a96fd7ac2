#!/usr/bin/env bash
# Makes training data of text with GPT-2's byte-level BPE, which the released RoBERTa models use.
#
#   bash prepare_gpt2.sh TRAIN.txt VALID.txt OUT BPE_DIR
#
# TRAIN.txt and VALID.txt have a sentence or a short paragraph a line, and an empty line between
# documents.
# OUT, a new folder, will hold what fairseq trains on.
# BPE_DIR holds encoder.json, vocab.bpe and dict.txt, as published with fairseq's RoBERTa.
# Setting: WORKERS, the number of processes (default: all cores).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 4 "$@"

prepare gpt2 "$1" "$2" "$3" --bpe-dir "$4"
