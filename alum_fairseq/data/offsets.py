"""Which characters of a text each of its subwords stands for, whatever cut it into subwords."""

from __future__ import annotations

import re
import unicodedata
from itertools import accumulate
from typing import Any

from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE

from alum_fairseq.data.subwords import TokenizersBPE

Subword = tuple[str, int, int]  # the symbol, its first character, and the one after the last


def subwords_of(encoder: Any, text: str) -> list[Subword]:
    """The symbols that an encoder makes of a text, in order, each with its characters.

    Blanks around are no part of a symbol's characters: what is left of one of blanks alone is
    empty. Characters that two symbols share (an emoji cut into bytes) belong to both.

    Args:
        encoder: of :meth:`alum_fairseq.data.vocabulary.Vocabulary.encoder`.
        text: any.
    """
    if isinstance(encoder, GPT2BPE):
        found = _of_bytes(encoder.bpe, text)
    elif isinstance(encoder, SentencepieceBPE):
        found = _of_sentencepiece(encoder.sp, text)
    elif isinstance(encoder, TokenizersBPE):
        found = encoder.subwords(text)
    else:
        found = [(word[0], *word.span()) for word in re.finditer(r"\S+", text)]
    begins = [*(begin for _, begin, _ in found[1:]), len(text)]
    return [
        (symbol, *_stripped(text, begin, _with_marks(text, end, following)))
        for (symbol, begin, end), following in zip(found, begins, strict=False)
    ]


def _of_bytes(bpe: Any, text: str) -> list[Subword]:
    """Of GPT-2's byte-level encoder, which loses no byte: each character of a token is one."""
    numbers = bpe.encode(text)
    character = [i for i, each in enumerate(text) for _ in each.encode()]
    ends = list(accumulate(len(bpe.decoder[number]) for number in numbers))
    return [
        (str(number), character[begin], character[end - 1] + 1)
        for number, begin, end in zip(numbers, [0, *ends], ends, strict=False)
    ]


def _of_sentencepiece(model: Any, text: str) -> list[Subword]:
    """By the library's message, whose places are those of bytes."""
    from sentencepiece.sentencepiece_pb2 import SentencePieceText  # others do not need it

    found = SentencePieceText.FromString(model.encode(text, out_type="serialized_proto"))
    character = [i for i, each in enumerate(text) for _ in each.encode()] + [len(text)]
    return [(piece.piece, character[piece.begin], character[piece.end]) for piece in found.pieces]


def _with_marks(text: str, end: int, following: int) -> int:
    """The end with the accents and joiners after it that no symbol stands for."""
    while end < following and unicodedata.category(text[end]) in ("Mn", "Me", "Cf"):
        end += 1
    return end


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    return begin, end
