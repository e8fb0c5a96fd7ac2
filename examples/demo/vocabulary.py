"""A sentencepiece model, and the same vocabulary as fairseq's ``dict.txt``."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

# fairseq's own first four symbols, at the ids that sentencepiece is told to give them: the two then
# number all pieces alike, and so do tokenizers that read the sentencepiece model alone.
CONTROL = ("<s>", "<pad>", "</s>", "<unk>")


def train_vocabulary(lines: Iterable[str], size: int, path: Path) -> None:
    """Train a unigram model on the lines, and write it; a smaller one if the text gives no more."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=0.9995,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        bos_piece=CONTROL[0],
        pad_piece=CONTROL[1],
        eos_piece=CONTROL[2],
        unk_piece=CONTROL[3],
        num_threads=2,
        minloglevel=2,
    )
    write_aside(path, model.getvalue())


def write_dictionary(
    tokenizer: sentencepiece.SentencePieceProcessor, counts: Counter[str], path: Path
) -> None:
    """Write ``dict.txt``: the pieces in the order of the sentencepiece vocabulary, and counts."""
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())]
    if tuple(pieces[: len(CONTROL)]) != CONTROL:
        raise ValueError(f"the vocabulary begins with {pieces[: len(CONTROL)]}, not {CONTROL}")
    lines = [f"{piece} {counts[piece]}\n" for piece in pieces[len(CONTROL) :]]
    write_aside(path, "".join(lines).encode("utf-8"))


def encode(tokenizer: sentencepiece.SentencePieceProcessor, lines: list[str]) -> list[str]:
    """Lines of pieces with spaces between them: what ``fairseq-preprocess`` reads."""
    return [" ".join(pieces) for pieces in tokenizer.encode(lines, out_type=str)]


def write_aside(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    os.replace(aside, path)
