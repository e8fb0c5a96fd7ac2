#!/usr/bin/env python
"""Encodes text by a subword vocabulary; the first half of ``prepare_*.sh``.

    encode.py sentencepiece TRAIN VALID FOLDER --vocab 8000|FOLDER_OF_ANOTHER_RUN
    encode.py gpt2 TRAIN VALID FOLDER --bpe-dir FOLDER_OF_ENCODER_JSON

Writes ``train``, ``valid`` (a line for every line of the text, subwords separated by spaces) and
``dict.txt`` into FOLDER, which ``fairseq-preprocess`` makes its binary files of; for sentencepiece
the model as well, under the name that fairseq's ``from_pretrained`` looks for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path

SENTENCEPIECE_MODEL = "sentencepiece.bpe.model"
GPT2_FILES = ("encoder.json", "vocab.bpe", "dict.txt")

# fairseq's own special symbols. As control symbols they are never the encoding of any text, and
# they are counted: the model's vocabulary, <mask> included, has as many entries as were asked for.
# sentencepiece has <unk>, <s> and </s> among its control symbols already.
CONTROL_SYMBOLS = ["<pad>", "<mask>"]

# RoBERTa's 512 positions less <s> and </s>. `--sample-break-mode complete` breaks no line up.
LONGEST_LINE = 510

# A worker's encoder; set once in each of them.
_encode: Callable[[str], list[str]]


def check_text(path: Path) -> None:
    """Refuse what cannot be trained on.

    Raises:
        SystemExit: the file is missing, or holds nothing but blanks.
    """
    if not path.is_file():
        raise SystemExit(f"{path}: there is no such file")
    if not any(line.strip() for line in read_lines(path)):
        raise SystemExit(f"{path}: the file has no text")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file, without the blanks around them.

    Raises:
        SystemExit: the file is not in UTF-8.
    """
    with path.open(encoding="utf-8") as file:
        try:
            for line in file:
                yield line.strip()
        except UnicodeDecodeError as error:
            raise SystemExit(f"{path}: the text is not in UTF-8 ({error})") from None


def train_sentencepiece(text: Path, model: Path, vocabulary: int, threads: int) -> list[str]:
    """Learn a BPE vocabulary, and list it in the order in which it was learnt.

    Raises:
        SystemExit: sentencepiece finds the vocabulary too large or too small for the text.
    """
    import sentencepiece

    # Texts of more lines than this are sampled, always in the same way.
    sentencepiece.set_random_generator_seed(1)
    prefix = str(model).removesuffix(".model")
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=prefix,
            model_type="bpe",
            vocab_size=vocabulary,
            control_symbols=CONTROL_SYMBOLS,
            input_sentence_size=2_000_000,
            shuffle_input_sentence=True,
            max_sentence_length=65_536,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]
        raise SystemExit(f"{text}: no vocabulary of {vocabulary}: {reason}") from None
    Path(f"{prefix}.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [
        pieces.id_to_piece(i)
        for i in range(pieces.get_piece_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i))
    ]


def take_sentencepiece(args: argparse.Namespace, model: Path) -> list[str]:
    """Put a model in its place: a new one, whose vocabulary is listed, or that of another run.

    Raises:
        SystemExit: there is no such vocabulary, or none can be learnt.
    """
    other = Path(args.vocab)
    if other.is_dir():
        for name in (SENTENCEPIECE_MODEL, "dict.txt"):
            if not (other / name).is_file():
                raise SystemExit(f"{other / name}: there is no such file")
            shutil.copyfile(other / name, model.with_name(name))
        return []
    if not (args.vocab.isdecimal() and int(args.vocab) > 0):
        raise SystemExit(f"the size of the vocabulary is {args.vocab}: it must be 1 or more")
    return train_sentencepiece(args.train, model, int(args.vocab), args.workers)


def start_sentencepiece(model: str) -> None:
    """Make this process encode by a sentencepiece model."""
    import sentencepiece

    global _encode
    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    _encode = lambda line: pieces.encode(line, out_type=str)  # noqa: E731


def start_gpt2(encoder_json: str, vocab_bpe: str) -> None:
    """Make this process encode by GPT-2's byte-level BPE, as fairseq has it."""
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    global _encode
    encoder = get_encoder(encoder_json, vocab_bpe)
    _encode = lambda line: [str(i) for i in encoder.encode(line)]  # noqa: E731


def encode_line(line: str) -> list[str]:
    """The subwords of a line."""
    return _encode(line)


def encode_file(text: Path, output: Path, pool: Pool) -> Counter[str]:
    """Encode a file line by line, and count its subwords."""
    counts: Counter[str] = Counter()
    too_long = 0
    with output.open("w", encoding="utf-8") as file:
        for subwords in pool.imap(encode_line, read_lines(text), chunksize=256):
            counts.update(subwords)
            too_long += len(subwords) > LONGEST_LINE
            file.write(" ".join(subwords) + "\n")
    if too_long:
        print(
            f"{text}: {too_long} lines have more than {LONGEST_LINE} subwords, and the recipes for "
            "GPUs leave them out: break them up, or train with --sample-break-mode none",
            file=sys.stderr,
        )
    return counts


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("train", type=Path)
    common.add_argument("valid", type=Path)
    common.add_argument("folder", type=Path)
    common.add_argument("--workers", type=int, default=2)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("sentencepiece", parents=[common]).add_argument("--vocab", required=True)
    kinds.add_parser("gpt2", parents=[common]).add_argument("--bpe-dir", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    args = parse_arguments()
    check_text(args.train)
    check_text(args.valid)
    dictionary = args.folder / "dict.txt"
    pieces: list[str] = []  # of a new vocabulary, to be counted
    if args.kind == "gpt2":
        for name in GPT2_FILES:
            if not (args.bpe_dir / name).is_file():
                raise SystemExit(f"{args.bpe_dir / name}: there is no such file")
        start, files = start_gpt2, tuple(str(args.bpe_dir / name) for name in GPT2_FILES[:2])
        shutil.copyfile(args.bpe_dir / "dict.txt", dictionary)
    else:
        model = args.folder / SENTENCEPIECE_MODEL
        pieces = take_sentencepiece(args, model)
        start, files = start_sentencepiece, (str(model),)
    start(*files)  # here first, so that the workers inherit what it imports
    with multiprocessing.Pool(args.workers, start, files) as pool:
        counts = encode_file(args.train, args.folder / "train", pool)
        encode_file(args.valid, args.folder / "valid", pool)
    if pieces:
        lines = [f"{piece} {counts[piece]}\n" for piece in pieces]
        dictionary.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
