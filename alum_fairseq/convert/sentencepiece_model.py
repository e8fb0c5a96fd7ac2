"""A SentencePiece ``.model`` file, read as the protocol buffer that it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sentencepiece import SentencePieceProcessor

from alum_fairseq.errors import UsageError

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto


def read_sentencepiece(path: Path) -> ModelProto:
    """Read a model: its pieces by id, and how it was trained and normalises text.

    Raises:
        UsageError: the file is not a SentencePiece model.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # only these models need protobuf

    content = path.read_bytes()
    try:
        SentencePieceProcessor(model_proto=content)  # validates more than the message types do
        model = ModelProto.FromString(content)
    except Exception:  # RuntimeError from sentencepiece, DecodeError from protobuf
        raise UsageError(f"{path} is not a SentencePiece model") from None
    if not all(isinstance(piece.piece, str) for piece in model.pieces):  # bytes if not in UTF-8
        raise UsageError(f"{path} is not a SentencePiece model: a piece is not in UTF-8")
    return model
