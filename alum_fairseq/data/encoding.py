"""Texts become symbols of the dictionary, short enough for the model, in several processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

from fairseq.tokenizer import tokenize_line

from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError

# A process is worth its start for so many examples.
_EXAMPLES_A_WORKER = 2000
_CHUNK = 64


@dataclass(frozen=True)
class Encoded:
    """One example.

    Attributes:
        texts: the symbols of every text, separated by blanks.
        truncated: whether it was too long.
        unknown: the number of its symbols that are not in the dictionary.
    """

    texts: tuple[str, ...]
    truncated: bool
    unknown: int


class ExampleEncoder:
    """Encodes the texts of an example, and cuts them to what the model can read.

    Args:
        vocabulary: the rule, and the dictionary.
        max_positions: the most tokens of ``<s> A </s>`` or ``<s> A </s> </s> B </s>``.
        choices: whether the first text is a context, which goes with each of the others by itself.

    Raises:
        UsageError: ``max_positions`` leaves no room, or the vocabulary is broken.
    """

    def __init__(self, vocabulary: Vocabulary, max_positions: int, choices: bool = False) -> None:
        if max_positions < 6:
            raise UsageError(
                f"--max-positions is {max_positions}: it must be 6 or more, since a pair has 4 "
                "special tokens"
            )
        self._max_positions = max_positions
        self._choices = choices
        self._bpe = vocabulary.encoder()
        self._dictionary = vocabulary.dictionary

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Encode one example."""
        symbols = [self._known(tokenize_line(self._bpe.encode(text))) for text in texts]
        lengths = [len(each) for each in symbols]
        kept = self._shortened(lengths)
        symbols = [each[:length] for each, length in zip(symbols, kept, strict=True)]
        return Encoded(
            tuple(" ".join(each) for each in symbols),
            kept != lengths,
            sum(each.count(self._dictionary.unk_word) for each in symbols),
        )

    def _known(self, symbols: list[str]) -> list[str]:
        """The symbols, less those that the dictionary lacks, and those that mean the model's own.

        A text that holds the characters ``</s>`` must not end the sentence.
        """
        dictionary = self._dictionary
        return [
            symbol if dictionary.index(symbol) >= dictionary.nspecial else dictionary.unk_word
            for symbol in symbols
        ]

    def _shortened(self, lengths: list[int]) -> list[int]:
        if not self._choices:
            return shorten(lengths, self._max_positions - 2 * len(lengths))
        context, *candidates = lengths
        pairs = [shorten([context, each], self._max_positions - 4) for each in candidates]
        return [min(pair[0] for pair in pairs), *(pair[1] for pair in pairs)]


def shorten(lengths: Sequence[int], room: int) -> list[int]:
    """What is left of texts when the longest lose their ends until all fit into the room."""
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
    choices: bool,
    workers: int,
) -> Iterator[Encoded]:
    """Encode examples, in their order, by as many processes as are worth it, and allowed."""
    workers = min(workers, 1 + len(examples) // _EXAMPLES_A_WORKER)
    if workers == 1:
        yield from map(ExampleEncoder(vocabulary, max_positions, choices), examples)
        return
    settings = (vocabulary.folder, max_positions, choices)
    with closing(Pool(workers, _start_worker, settings)) as pool:
        try:
            yield from pool.imap(_encode, examples, _CHUNK)
        except BaseException:
            pool.terminate()
            raise


# A worker's encoder; set once in each of them.
_encoder: ExampleEncoder


def _start_worker(folder: Path, max_positions: int, choices: bool) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    _encoder = ExampleEncoder(Vocabulary.load(folder), max_positions, choices)


def _encode(texts: Sequence[str]) -> Encoded:
    return _encoder(texts)
