"""``--bpe alum_tokenizers``: subwords by a ``tokenizer.json`` of Hugging Face's tokenizers."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass, field
from pathlib import Path

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import existing_file

# fairseq's own symbols, and how sentencepiece and byte-level BPE mark the beginning of a word.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BEGINNINGS = ("\u2581", "\u0120")


@dataclass
class TokenizersBPEConfig(FairseqDataclass):
    """Where the tokenizer is."""

    alum_tokenizer_json: str = field(
        default="???", metadata={"help": "path to a tokenizer.json, such as BERT's WordPiece has"}
    )


@register_bpe("alum_tokenizers", dataclass=TokenizersBPEConfig)
class TokenizersBPE:
    """A tokenizer of the ``tokenizers`` library, as one of fairseq's BPEs.

    Raises:
        UsageError: the file is missing or broken.
    """

    def __init__(self, cfg: TokenizersBPEConfig) -> None:
        from tokenizers import Tokenizer  # pre-training does without
        from tokenizers.models import WordPiece

        path = existing_file(Path(cfg.alum_tokenizer_json))
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing finer
            raise UsageError(f"{path} is no tokenizer: {one_line(error)}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = self._tokenizer.model
        # WordPiece marks what goes on in a word, all others what begins one.
        self._continues = model.continuing_subword_prefix if isinstance(model, WordPiece) else None

    def encode(self, x: str) -> str:
        """The subwords of a text, separated by blanks."""
        return " ".join(self._tokenizer.encode(x, add_special_tokens=False).tokens)

    def decode(self, x: str) -> str:
        """The text of subwords."""
        ids = [self._tokenizer.token_to_id(token) for token in x.split()]
        return self._tokenizer.decode([i for i in ids if i is not None])

    def is_beginning_of_word(self, x: str) -> bool:
        """Whether a subword begins a word; asked for by whole-word masking."""
        if x in _SPECIAL:
            return True
        if self._continues is not None:
            return not x.startswith(self._continues)
        return x.startswith(_BEGINNINGS)
