"""Subwords: ``--bpe alum_tokenizers``, which reads a ``tokenizer.json``, and GPT-2's numbering."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.data.encoders import register_bpe
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.dataclass import FairseqDataclass

from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import existing_file

# fairseq's special symbols, in the order of its indices; <mask> is the last of all symbols.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# How SentencePiece and byte-level BPE mark the beginning of a word.
_BEGINNINGS = ("\u2581", "\u0120")
END_OF_TEXT = "<|endoftext|>"


@dataclass
class TokenizersBPEConfig(FairseqDataclass):
    """Where the tokenizer is."""

    alum_tokenizer_json: str = field(
        default="???",
        metadata={"help": "path to a tokenizer.json, such as that of BERT's WordPiece"},
    )


@register_bpe("alum_tokenizers", dataclass=TokenizersBPEConfig)
class TokenizersBPE:
    """A tokenizer of the ``tokenizers`` library, behind the interface of fairseq's BPEs.

    Raises:
        UsageError: the file is missing or broken.
    """

    def __init__(self, cfg: TokenizersBPEConfig) -> None:
        from tokenizers import Tokenizer  # pre-training does not need it
        from tokenizers.models import WordPiece

        path = existing_file(Path(cfg.alum_tokenizer_json))
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise UsageError(f"{path} is not a tokenizer: {one_line(error)}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._ids = self._tokenizer.get_vocab()
        self._tokens = {i: token for token, i in self._ids.items()}
        model = self._tokenizer.model
        # WordPiece marks the subwords that continue a word, all others those that begin one.
        self._continuation = (
            model.continuing_subword_prefix if isinstance(model, WordPiece) else None
        )

    def encode(self, x: str) -> str:
        """The subwords of a text, separated by spaces."""
        return " ".join(symbol for symbol, _, _ in self.subwords(x))

    def subwords(self, text: str) -> list[tuple[str, int, int]]:
        """The subwords of a text, each with its first character and the one after its last."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        # Not its tokens: an added one would be as normalised, in small letters for instance.
        return [
            (self._tokens[i], *characters)
            for i, characters in zip(found.ids, found.offsets, strict=True)
        ]

    def decode(self, x: str) -> str:
        """The text of subwords."""
        ids = [self._ids[token] for token in x.split() if token in self._ids]
        return self._tokenizer.decode(ids)

    def is_beginning_of_word(self, x: str) -> bool:
        """Whether a subword begins a word; whole-word masking needs it."""
        if x in SPECIAL_TOKENS:
            return True
        if self._continuation is not None:
            return not x.startswith(self._continuation)
        return x.startswith(_BEGINNINGS)


def gpt2_encoder(merges: Iterable[tuple[str, ...]], others: Container[str] = ()) -> dict[str, int]:
    """GPT-2's ``encoder.json``: numbers for the bytes, the results of the merges, the end of text.

    Args:
        merges: in the order in which they are applied.
        others: the vocabulary's other tokens; of these, only the end of text gets a number.
    """
    tokens = [*bytes_to_unicode().values(), *("".join(merge) for merge in merges)]
    if END_OF_TEXT in others:
        tokens.append(END_OF_TEXT)
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}
