"""Encode texts as symbols of the dictionary, truncated to what the model reads."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

from fairseq.tokenizer import tokenize_line

from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import SupervisedProblem

# With fewer examples, starting another process takes longer than it saves.
_EXAMPLES_PER_WORKER = 2000
_CHUNK = 64


@dataclass(frozen=True)
class Encoded:
    """An encoded example.

    Attributes:
        texts: the symbols of each text, separated by spaces.
        truncated: whether symbols were dropped because it was too long.
        unknown: number of its symbols that are not in the dictionary.
        tokens: of its longest input, special ones included.
    """

    texts: tuple[str, ...]
    truncated: bool
    unknown: int
    tokens: int


class ExampleEncoder:
    """Encodes the texts of an example, and truncates them to what the model can read.

    Args:
        vocabulary: the subword encoder and the dictionary.
        max_positions: maximum number of tokens of ``<s> A </s>`` or ``<s> A </s> </s> B </s>``.
        problem: which of an example's texts the model reads together.

    Raises:
        UsageError: ``max_positions`` is too small, or the vocabulary is broken.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_positions: int, problem: SupervisedProblem
    ) -> None:
        if max_positions < 6:
            raise UsageError(
                f"--max-positions is {max_positions}: it must be 6 or more, since a pair has 4 "
                "special tokens"
            )
        self._max_positions = max_positions
        self._problem = problem
        self._bpe = vocabulary.encoder()
        words = vocabulary.dictionary
        self._symbols = set(words.symbols) - set(words.symbols[: words.nspecial])
        # A dict.txt may overwrite <unk> (CamemBERT's does): unknown words stay what they were.
        self._unknown = words.unk_string(escape=words.index(words.unk_word) != words.unk())

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Encode one example."""
        unknown = self._unknown
        # A text that contains the characters </s> must not end the sentence.
        symbols = [
            [
                symbol if symbol in self._symbols else unknown
                for symbol in tokenize_line(self._bpe.encode(text))
            ]
            for text in texts
        ]
        lengths = [len(each) for each in symbols]
        kept = self._truncate(lengths)
        symbols = [each[:length] for each, length in zip(symbols, kept, strict=True)]
        return Encoded(
            tuple(" ".join(each) for each in symbols),
            kept != lengths,
            sum(each.count(unknown) for each in symbols),
            max(sum(kept[i] + 2 for i in texts) for texts in self._inputs(len(kept))),
        )

    def _inputs(self, texts: int) -> Iterator[Sequence[int]]:
        """The texts that the model reads together, by their numbers."""
        return self._problem.inputs(range(texts))

    def _truncate(self, lengths: list[int]) -> list[int]:
        kept = list(lengths)
        for texts in map(sorted, self._inputs(len(lengths))):
            room = self._max_positions - 2 * len(texts)
            together = truncate_longest_first([lengths[i] for i in texts], room)
            for text, length in zip(texts, together, strict=True):
                kept[text] = min(kept[text], length)
        return kept


def truncate_longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """The lengths, with the longest reduced until their sum is at most ``room``."""
    kept = list(lengths)
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    for done, place in enumerate(shortest_first):
        kept[place] = min(lengths[place], room // (len(lengths) - done))
        room -= kept[place]
    return kept


def encode_all(
    examples: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    max_positions: int,
    problem: SupervisedProblem,
    workers: int,
) -> Iterator[Encoded]:
    """Encode examples in order, in at most ``workers`` processes (fewer for few examples)."""
    workers = min(workers, 1 + len(examples) // _EXAMPLES_PER_WORKER)
    if workers == 1:
        yield from map(ExampleEncoder(vocabulary, max_positions, problem), examples)
        return
    settings = (vocabulary.folder, max_positions, problem)
    with Pool(workers, _start_worker, settings) as pool:  # its end terminates the workers
        yield from pool.imap(_encode, examples, _CHUNK)


# The encoder of a worker process, which is set when the process starts.
_encoder: ExampleEncoder


def _start_worker(folder: Path, max_positions: int, problem: SupervisedProblem) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent terminates its workers
    _encoder = ExampleEncoder(Vocabulary.load(folder), max_positions, problem)


def _encode(texts: Sequence[str]) -> Encoded:
    return _encoder(texts)
