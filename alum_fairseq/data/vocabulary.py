"""A vocabulary: a folder with ``dict.txt`` and the files of its subword encoder."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.data.encoders import build_bpe

from alum_fairseq.data.subwords import gpt2_encoder  # registers a BPE, too
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import existing_folder

DICTIONARY = "dict.txt"

# For each --bpe of fairseq, the options that name its files, and the names they are published by.
_FILES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"},
    "sentencepiece": {"sentencepiece_model": "sentencepiece.bpe.model"},
    "alum_tokenizers": {"alum_tokenizer_json": "tokenizer.json"},
    "none": {},
}


@dataclass(frozen=True)
class Vocabulary:
    """A dictionary, and the subword encoder that splits text into its symbols.

    Attributes:
        folder: the folder of the files.
        bpe: fairseq's name of the encoder: ``gpt2`` (byte-level BPE: ``encoder.json`` and
            ``vocab.bpe``), ``sentencepiece`` (``sentencepiece.bpe.model``), ``alum_tokenizers``
            (Hugging Face's ``tokenizer.json``, for instance of WordPiece), or ``none``, where
            symbols are words.
        dictionary: the symbols of ``dict.txt``, without ``<mask>``, which fairseq's tasks add.

    Example:
        >>> vocabulary = Vocabulary.load(Path("start"))
        >>> vocabulary.encoder().encode("two words")
    """

    folder: Path
    bpe: str
    dictionary: Dictionary

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read a folder, whose files tell which encoder it is for.

        Raises:
            UsageError: files are missing or broken, or belong to several encoders.
        """
        existing_folder(folder)
        complete = [
            bpe
            for bpe, files in _FILES.items()
            if files and all((folder / name).is_file() for name in files.values())
        ]
        if len(complete) > 1:
            names = " and ".join("+".join(_FILES[bpe].values()) for bpe in complete)
            raise UsageError(f"{folder} holds {names}: keep those that dict.txt belongs to")
        for files in () if complete else _FILES.values():
            present = [name for name in files.values() if (folder / name).is_file()]
            if present:
                missing = next(name for name in files.values() if name not in present)
                raise UsageError(f"{folder} holds {present[0]} but no {missing}")
        return cls(folder, complete[0] if complete else "none", load_dictionary(folder))

    @property
    def options(self) -> dict[str, str]:
        """Options for fairseq's commands, and for ``from_pretrained``, that choose this encoder."""
        if self.bpe == "none":
            return {}
        files = {key: str(self.folder / name) for key, name in _FILES[self.bpe].items()}
        return {"bpe": self.bpe, **files}

    @property
    def files(self) -> list[Path]:
        """All files of the vocabulary."""
        return [self.folder / name for name in (DICTIONARY, *_FILES[self.bpe].values())]

    def copy_to(self, folder: Path) -> Vocabulary:
        """Copy the files to a folder, which is created if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
        return Vocabulary(folder, self.bpe, self.dictionary)

    def encoder(self) -> Any:
        """fairseq's encoder, with ``encode(text)`` and ``decode(symbols)``, or a UsageError."""
        if self.bpe == "none":
            return _Words()
        try:
            encoder = build_bpe(Namespace(**self.options))
            # Every token that the merges can produce must have a number.
            for token in gpt2_encoder(encoder.bpe.bpe_ranks) if self.bpe == "gpt2" else ():
                if token not in encoder.bpe.encoder:
                    raise UsageError(
                        f"{self.files[1]} has no number for {token!r}, which {self.files[2]} "
                        "makes: they do not belong together"
                    )
            return encoder
        except UsageError:
            raise
        except Exception as error:  # each library raises its own
            names = ", ".join(str(file) for file in self.files[1:])
            raise UsageError(f"{names} cannot be read: {one_line(error)}") from None


class _Words:
    """The encoder of a vocabulary whose symbols are words."""

    def encode(self, text: str) -> str:
        return " ".join(text.split())

    def decode(self, symbols: str) -> str:
        return symbols


def load_dictionary(folder: Path) -> Dictionary:
    """The dictionary in a folder.

    Raises:
        UsageError: there is none, or it is broken.
        PermissionError: this user may not read it.
    """
    path = folder / DICTIONARY
    if not path.is_file():
        hint = f"; for a Hugging Face folder, run alum-convert from-hf {folder} base first"
        hint = hint if (folder / "config.json").is_file() else ""
        raise UsageError(f"{folder} has no {DICTIONARY}{hint}")
    try:
        return Dictionary.load(str(path))
    except PermissionError:
        raise
    except Exception as error:  # fairseq raises bare Exceptions, too
        raise UsageError(f"{path} is not a dictionary of fairseq: {one_line(error)}") from None


def class_names(dictionary: Dictionary) -> list[str]:
    """The symbols of classes: without fairseq's own, and those by which it fills one up."""
    names = dictionary.symbols[dictionary.nspecial :]
    return [name for name in names if name != "<mask>" and not name.startswith("madeupword")]
