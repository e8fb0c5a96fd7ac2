"""How text becomes tokens: a folder that holds ``dict.txt`` and the files of its subwords."""

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

# fairseq's --bpe, and the options that name its files: those under which they are published.
_FILES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"},
    "sentencepiece": {"sentencepiece_model": "sentencepiece.bpe.model"},
    "alum_tokenizers": {"alum_tokenizer_json": "tokenizer.json"},
    "none": {},
}
BPE_KINDS = tuple(_FILES)


@dataclass(frozen=True)
class Vocabulary:
    """A dictionary, and the rule by which text is cut into its symbols.

    Attributes:
        folder: where the files lie.
        bpe: fairseq's name of the rule: ``gpt2`` (byte-level BPE: ``encoder.json`` and
            ``vocab.bpe``), ``sentencepiece`` (``sentencepiece.bpe.model``), ``alum_tokenizers``
            (``tokenizer.json``, as Hugging Face has it; WordPiece above all), or ``none``, where
            a symbol is what stands between blanks.
        dictionary: the symbols of ``dict.txt``, without ``<mask>``, which fairseq's tasks add.

    Make one with :meth:`load`.
    """

    folder: Path
    bpe: str
    dictionary: Dictionary

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read a folder, and see by its files which rule it is for.

        Raises:
            UsageError: files are missing, broken, or those of several rules.
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
        present = [n for fs in _FILES.values() for n in fs.values() if (folder / n).is_file()]
        if present and not complete:
            bpe = next(b for b, fs in _FILES.items() if present[0] in fs.values())
            missing = next(n for n in _FILES[bpe].values() if n not in present)
            raise UsageError(f"{folder} holds {present[0]} but no {missing}")
        return cls(folder, complete[0] if complete else "none", load_dictionary(folder))

    @property
    def options(self) -> dict[str, str]:
        """The options of fairseq's commands, and of ``from_pretrained``, that name this rule."""
        if self.bpe == "none":
            return {}
        files = {key: str(self.folder / name) for key, name in _FILES[self.bpe].items()}
        return {"bpe": self.bpe, **files}

    @property
    def files(self) -> list[Path]:
        """Everything that makes up the vocabulary."""
        return [self.folder / name for name in (DICTIONARY, *_FILES[self.bpe].values())]

    def copy_to(self, folder: Path) -> Vocabulary:
        """Copy the files to a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
        return Vocabulary(folder, self.bpe, self.dictionary)

    def encoder(self) -> Any:
        """fairseq's object of the rule, with ``encode(text)`` and ``decode(symbols)``.

        Raises:
            UsageError: the files are broken.
        """
        if self.bpe == "none":
            return _Words()
        try:
            encoder = build_bpe(Namespace(**self.options))
            if self.bpe == "gpt2":
                self._check_byte_level(encoder.bpe)
            return encoder
        except UsageError:
            raise
        except Exception as error:  # each library has its own
            names = ", ".join(str(file) for file in self.files[1:])
            raise UsageError(f"{names} cannot be read: {one_line(error)}") from None

    def _check_byte_level(self, bpe: Any) -> None:
        """Check that every token that the merges can produce has a number."""
        for token in gpt2_encoder(bpe.bpe_ranks):
            if token not in bpe.encoder:
                raise UsageError(
                    f"{self.files[1]} has no number for {token!r}, which {self.files[2]} makes: "
                    "they do not belong together"
                )


class _Words:
    """Symbols that are words already."""

    def encode(self, text: str) -> str:
        return " ".join(text.split())

    def decode(self, symbols: str) -> str:
        return symbols


def load_dictionary(folder: Path) -> Dictionary:
    """The dictionary in a folder.

    Raises:
        UsageError: there is none, or it is broken.
        PermissionError: it is closed to this user.
    """
    path = folder / DICTIONARY
    if not path.is_file():
        raise UsageError(f"{folder} has no {DICTIONARY}")
    try:
        return Dictionary.load(str(path))
    except PermissionError:
        raise
    except Exception as error:  # fairseq raises Exception, too
        raise UsageError(f"{path} is no dictionary of fairseq: {one_line(error)}") from None
