"""A small vocabulary of every kind of subwords, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from alum_fairseq.data.subwords import SPECIAL_TOKENS, gpt2_encoder

KINDS = ("gpt2", "sentencepiece", "wordpiece", "words")
TEXT = [
    "who",
    "wrote",
    "the",
    "book",
    "about",
    "the",
    "island",
    "and",
    "when",
    "did",
    "she",
    "write",
    "it",
    "there",
]


def make_vocabulary(kind: str, folder: Path) -> Path:
    """Write its files, and a dictionary that holds all of its symbols."""
    folder.mkdir()
    if kind == "gpt2":
        space = bytes_to_unicode()[ord(" ")]
        merges = [("t", "h"), ("th", "e"), (space, "the"), (space, "w"), ("i", "t"), ("e", "r")]
        numbers = gpt2_encoder(merges)
        (folder / "encoder.json").write_text(json.dumps(numbers))
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (folder / "vocab.bpe").write_text("\n".join(lines) + "\n")
        symbols = [str(number) for number in numbers.values()]
    elif kind == "sentencepiece":
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(TEXT[i:] + TEXT[:i]) for i in range(len(TEXT))]),
            model_prefix=str(folder / "sentencepiece.bpe"),
            vocab_size=50,
            model_type="bpe",
            minloglevel=2,
        )
        (folder / "sentencepiece.bpe.vocab").unlink()
        model = sentencepiece.SentencePieceProcessor()
        model.Load(str(folder / "sentencepiece.bpe.model"))
        symbols = [model.IdToPiece(i) for i in range(3, model.GetPieceSize())]
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=60, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        )
        tokenizer.train_from_iterator(TEXT, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        symbols = sorted(tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS))
    else:
        symbols = sorted(set(TEXT))
    (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    return folder
