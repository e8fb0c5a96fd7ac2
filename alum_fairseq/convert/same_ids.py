"""Whether fairseq reads text as transformers does, tried on every token and on mixed text."""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from alum_fairseq.checkpoints.reading import silent
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError

_MIXED = 2000  # lines
_LENGTH = 8  # pieces a line
_ODD = ["...", "===", "'s", "3,141.59", "HTML", "caf\u00e9", "e\u0301", "\u4f60\u597d"]
_ODD += "\t\n\u3000\u2014\ufb01\uff21\u00bd\u2603\u041f\U0001f680"  # one by one
_TOO_MANY = 0.1  # of the texts: this is another tokenizer


def texts_of(tokenizer: Tokenizer, special: Iterable[int]) -> list[str]:
    """Every token by itself, those that were added between others, and lines of mixed text.

    The special tokens are left out: no text stands for them.
    """
    left_out = set(special)
    tokens = {token: i for token, i in tokenizer.get_vocab().items() if i not in left_out}
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in sorted(tokens.values())]
    draw = random.Random(1)
    pieces = [*texts, *_ODD * (1 + len(texts) // 100)]
    for token in sorted(tokens.keys() - tokenizer.get_vocab(False).keys()):
        texts += [f"a{token}b", f"a {token} b"]
    for _ in range(_MIXED):
        chosen = (draw.choice(("", " ", "  ")) + draw.choice(pieces) for _ in range(_LENGTH))
        texts.append("".join(chosen))
    return [text for text in texts if text.strip()]


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids that a tokenizer gives to each text, without special tokens around."""
    return [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]


def ids_of_transformers(folder: Path, texts: list[str]) -> list[list[int]] | None:
    """The ids that transformers gives; None if it is not installed, or cannot read the folder."""
    with silent("transformers"), warnings.catch_warnings(action="ignore"):
        try:
            load: Any = importlib.import_module("transformers").AutoTokenizer.from_pretrained
            tokenizer = load(str(folder), local_files_only=True, trust_remote_code=False)
            return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception:  # of whatever it needs for a folder
            return None


def differing(
    vocabulary: Vocabulary,
    texts: Sequence[str],
    expected: Sequence[Sequence[int]],
    numbers: Mapping[int, int],
) -> list[str]:
    """The texts that fairseq reads otherwise than transformers.

    Args:
        vocabulary: fairseq's.
        texts: to try.
        expected: transformers' ids of each text.
        numbers: fairseq's index for each of transformers' ids; the others are ``<unk>``.
    """
    dictionary, encode = vocabulary.dictionary, vocabulary.encoder().encode
    unknown = dictionary.unk()

    def known(index: int) -> int:
        return index if dictionary.nspecial <= index < len(dictionary) else unknown

    wrong = []
    for text, ids in zip(texts, expected, strict=True):
        ours = [known(dictionary.index(symbol)) for symbol in encode(text).split()]
        theirs = [known(numbers.get(i, unknown)) for i in ids]
        # Not in order: where two orders of the same pieces have the same score, sentencepiece's
        # float32 and tokenizers' float64 may choose differently.
        if sorted(ours) != sorted(theirs):
            wrong.append(text)
    return wrong


def note_of(wrong: Sequence[str], texts: Sequence[str], source: object) -> list[str]:
    """A note on the texts that are read differently, if any; a UsageError if there are too many."""
    if not wrong:
        return []
    said = (
        f"{len(wrong):,} of {len(texts):,} texts become other tokens in fairseq than in "
        f"transformers, such as {min(wrong, key=len)!r:.60}"
    )
    if len(wrong) > _TOO_MANY * len(texts):
        raise UsageError(f"{source}: fairseq has no such tokenizer: {said}")
    return [said]
