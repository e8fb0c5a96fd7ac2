"""What is in a ``.model`` of sentencepiece: more than its library tells.

The file is a protocol buffer (``sentencepiece_model.proto`` in google/sentencepiece says which
field is what). A few of its fields are needed here, which does not justify another dependency.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from alum_fairseq.errors import UsageError

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType

# SentencePiece.Type
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6


@dataclass(frozen=True)
class Piece:
    """A piece: its text, its score, and its type as the file has it."""

    text: str
    score: float = 0.0
    type: int = _NORMAL

    @property
    def is_text(self) -> bool:
        """Whether text can be cut into it: it is not ``<s>``, ``<unk>`` and the like."""
        return self.type in (_NORMAL, _USER_DEFINED, _BYTE)

    @property
    def is_user_defined(self) -> bool:
        """Whether it is never cut, wherever it occurs."""
        return self.type == _USER_DEFINED


@dataclass(frozen=True)
class SentencepieceModel:
    """A model of sentencepiece.

    Attributes:
        pieces: by sentencepiece's own ids.
        kind: :data:`UNIGRAM`, :data:`BPE`, or another number (words, characters).
        byte_fallback: whether unknown characters become bytes.
        suffix: whether blanks belong to the end of words.
        charsmap: how characters are normalised, compiled.
        dummy_prefix: whether text gets a blank in front.
        single_blanks: whether several blanks count as one, and those at the ends as none.
    """

    pieces: tuple[Piece, ...]
    kind: int = UNIGRAM
    byte_fallback: bool = False
    suffix: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    single_blanks: bool = True

    @classmethod
    def read(cls, path: Path) -> SentencepieceModel:
        """Read a file.

        Raises:
            UsageError: it is no model of sentencepiece.
        """
        try:
            content = path.read_bytes()
            SentencePieceProcessor(model_proto=content)  # checks more than we do
            return _model(content)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        except Exception:  # the library raises RuntimeError, and broken bytes lead anywhere
            raise UsageError(f"{path} is no model of sentencepiece") from None


def _model(content: bytes) -> SentencepieceModel:
    pieces = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(content):
        if number == 1:
            found = dict(_fields(value))
            score = struct.unpack("<f", found.get(2, bytes(4)))[0]
            pieces.append(Piece(found.get(1, b"").decode(), score, found.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    return SentencepieceModel(
        pieces=tuple(pieces),
        kind=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, False)),
        suffix=bool(trainer.get(24, False)),
        charsmap=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, True)),
        single_blanks=bool(normalizer.get(4, True)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: numbers, and values as integers or bytes."""
    at = 0
    while at < len(message):
        key, at = _integer(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _integer(message, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, at = _integer(message, at)
            value, at = message[at : at + size], at + size
        yield number, value


def _integer(message: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, seven bits a byte, and where the next field begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
