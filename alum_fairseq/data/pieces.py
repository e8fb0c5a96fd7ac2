"""Examples of problems that are about tokens, as inputs of the model, and as a data set of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset
from fairseq.data.data_utils import collate_tokens
from torch import Tensor

from alum_fairseq.data.layout import Layout
from alum_fairseq.data.offsets import subwords_of
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import Piece, PieceOf, TokenProblem

_SPECIAL = 4  # the most special tokens around two texts
_TEXTS_KEPT = 64  # questions about one context come one after the other


class PieceEncoder:
    """Cuts an example into inputs of the model.

    Args:
        vocabulary: the subword encoder, and its dictionary.
        layout: of the model's inputs, for a :class:`TokenProblem`.

    Raises:
        UsageError: the model has too few positions, or the vocabulary is broken.
    """

    def __init__(self, vocabulary: Vocabulary, layout: Layout) -> None:
        self._layout = layout
        self._problem: TokenProblem = layout.problem
        # A context, or a word, has a quarter of the positions at the least.
        self._room = layout.max_positions - _SPECIAL
        self._before = min(self._problem.most_before, 3 * self._room // 4)
        if self._room < 4:
            raise UsageError(
                f"--max-positions is {layout.max_positions}: it must be {_SPECIAL + 4} or more"
            )
        words: Dictionary = vocabulary.dictionary
        self._bpe, self._eos = vocabulary.encoder(), torch.tensor([words.eos()])
        known = range(words.nspecial, len(words))
        self._numbers = {words[number]: number for number in known}
        # A dict.txt may overwrite <unk> (CamemBERT's does): unknown words stay what they were.
        escape = words.index(words.unk_word) != words.unk()
        self._unknown = words.index(words.unk_string(escape=escape))
        self._encoded = lru_cache(_TEXTS_KEPT)(self._encode)

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """The tokens of a text, and the characters of each."""
        found = subwords_of(self._bpe, text)
        tokens = [self._numbers.get(symbol, self._unknown) for symbol, _, _ in found]
        ranges = [characters for _, *characters in found]
        return torch.tensor(tokens, dtype=torch.int32), torch.tensor(ranges).view(-1, 2)

    def __call__(self, texts: Sequence[str]) -> list[Piece]:
        """The inputs of an example, one or more."""
        *before, last = texts
        first = [torch.cat([self._encoded(text)[0][: self._before], self._eos]) for text in before]
        tokens, ranges = self._encoded(last)
        opening = self._layout.opening(first)
        room = self._layout.max_positions - len(opening) - 1
        return [
            Piece(opening, tokens[begin:end], self._eos, ranges[begin:end])
            for begin, end in self._problem.cuts(ranges, last, room)
        ]

    def unknown_in(self, piece: Piece) -> int:
        """How many tokens of the body are not in the dictionary."""
        return int(piece.body.eq(self._unknown).sum())


class PieceDataset(FairseqDataset):
    """Pieces with their targets.

    Args:
        pieces: of one split.
        problem: whose targets they have.
        padding: the index of ``<pad>``.
        shuffle: whether batches come in another order in every epoch.
    """

    def __init__(
        self, pieces: Sequence[PieceOf], problem: TokenProblem, padding: int, shuffle: bool
    ) -> None:
        self._pieces, self._problem, self._padding = pieces, problem, padding
        self._shuffle = shuffle
        self.sizes = np.array([len(each.piece) for each in pieces])

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> tuple[int, PieceOf]:
        return int(index), self._pieces[index]

    def num_tokens(self, index: int) -> int:
        """As fairseq asks for it."""
        return self.sizes[index]

    size = num_tokens

    def ordered_indices(self) -> np.ndarray:
        """In random order, or as they are."""
        return np.random.permutation(len(self)) if self._shuffle else np.arange(len(self))

    @property
    def supports_prefetch(self) -> bool:
        """All is in memory."""
        return False

    def collater(self, samples: list[tuple[int, PieceOf]]) -> dict[str, Any]:
        """A batch; ``rows`` are its pieces, for metrics."""
        if not samples:
            return {}
        numbers, rows = zip(*samples, strict=True)
        tokens = [row.piece.tokens.long() for row in rows]
        targets = [self._problem.target(row) for row in rows]
        lengths = torch.tensor([len(each) for each in tokens])
        return {
            "id": torch.tensor(numbers),
            "net_input": {
                "src_tokens": collate_tokens(tokens, self._padding),
                "src_lengths": lengths,
            },
            "target": self._problem.batch_of(targets),
            "nsentences": len(rows),
            "ntokens": int(lengths.sum()),
            "rows": list(rows),
        }


def pieces_of(
    examples: Sequence[tuple[tuple[str, ...], str]], encoder: PieceEncoder
) -> Iterator[PieceOf]:
    """All pieces of examples, each of which has texts and a label."""
    for number, (texts, label) in enumerate(examples):
        for piece in encoder(texts):
            yield PieceOf(piece, number, texts, label)
