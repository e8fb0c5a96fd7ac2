#!/usr/bin/env bash
# Deals the documents of a large corpus out to shards, like cards.
#
#   bash split_corpus.sh CORPUS.txt OUT SHARDS
#
# CORPUS.txt has a sentence or a short paragraph a line, and an empty line between documents.
# OUT, a new folder, will hold SHARDS files, 000.txt, 001.txt, ...; each a sample of the whole.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 3 "$@"

corpus="$1" out="${2%/}" shards="$3"
[ -f "$corpus" ] || fail "$corpus: there is no such file"
[ ! -e "$out" ] || fail "$out exists: remove it, or name another folder"
case "$shards" in '' | 0 | *[!0-9]*) fail "SHARDS is $shards: it must be 1 or more" ;; esac
mkdir -p "$(dirname "$out")"
unfinished="$(mktemp -d "$out.unfinished.XXXXXX")"
trap 'rm -rf "$unfinished"' EXIT
awk -v folder="$unfinished" -v shards="$shards" '
    BEGIN { RS = ""; ORS = "\n\n" }
    { print > (folder "/" sprintf("%03d", (NR - 1) % shards) ".txt") }' "$corpus"
made="$(find "$unfinished" -name '*.txt' | wc -l)"
[ "$made" -eq "$shards" ] || fail "$corpus has documents for $made shards only, not for $shards"
chmod 755 "$unfinished"
mv "$unfinished" "$out"
echo "wrote $out"
