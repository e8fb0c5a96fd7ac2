"""Typing mistakes: letters swapped, dropped, or hit beside the right key.

After Belinkov and Bisk 2018, "Synthetic and Natural Noise Both Break Neural Machine Translation"
(arXiv 1711.02173: swaps and keyboard slips), and Pruthi et al. 2019, "Combating Adversarial
Misspellings with Robust Word Recognition" (arXiv 1905.11268: drops as well). As there, the first
and the last letter of a word stay, which keeps it readable.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.words import Editor
from alum_fairseq.robustness.types import Texts

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

# From a key to the ones it touches, as (rows down, columns to the right): each row of a keyboard
# lies about half a key to the right of the one above it.
_AROUND = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))


def _neighbours() -> dict[str, str]:
    keys = {(row, column): key for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
    beside = {
        key: "".join(keys.get((row + down, column + right), "") for down, right in _AROUND)
        for (row, column), key in keys.items()
    }
    return beside | {key.upper(): others.upper() for key, others in beside.items()}


_BESIDE: Mapping[str, str] = _neighbours()


def swaps(word: str) -> list[str]:
    """The word with two neighbouring inner letters swapped, in every way that changes it."""
    return _distinct(
        word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        for i in range(1, len(word) - 2)
        if word[i] != word[i + 1]
    )


def drops(word: str) -> list[str]:
    """The word without one of its inner letters, in every way."""
    return _distinct(word[:i] + word[i + 1 :] for i in range(1, len(word) - 1))


def slips(word: str) -> list[str]:
    """The word with an inner letter hit beside its key on a QWERTY keyboard, in every way."""
    return _distinct(
        word[:i] + key + word[i + 1 :]
        for i in range(1, len(word) - 1)
        for key in _BESIDE.get(word[i], "")
    )


def _distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


NOISES: Mapping[str, Callable[[str], list[str]]] = {
    "swap": swaps,
    "drop": drops,
    "keyboard": slips,
}


def add_noise(
    texts: Texts,
    kind: str,
    rate: float,
    seed: int,
    editable: Collection[int] | None = None,
    fixed: Collection[tuple[int, int, int]] = (),
) -> tuple[Texts, int]:
    """Make one typing mistake in each of some words.

    What is changed depends on the texts, the kind and the seed alone, and the words that change at
    one rate change in the same way at every higher one.

    Args:
        kind: a key of :data:`NOISES`.
        rate: the share of the words to change, from 0 to 1; fewer change where too few can (see
            :meth:`alum_fairseq.robustness.attacks.words.SplitText.editable`).
        editable: the numbers of the texts that may change, from 0; None: all. Only their words
            count.
        fixed: where no character may change, as for an
            :class:`alum_fairseq.robustness.attacks.words.Editor`.

    Returns:
        The texts with the mistakes, and how many words have one.

    Raises:
        UsageError: the kind, the rate or a number in ``editable`` is not as described.
    """
    if kind not in NOISES:
        raise UsageError(f"noise {kind!r} is not known: it must be one of {', '.join(NOISES)}")
    if not 0 <= rate <= 1:
        raise UsageError(f"the noise rate is {rate!r}: it must be a number from 0 to 1")
    editor = Editor(texts, editable, fixed)
    mistakes = {place: NOISES[kind](editor.word(place)) for place in editor.places()}
    places = [place for place, ways in mistakes.items() if ways]
    source = seeded(seed, kind, texts)
    source.shuffle(places)
    changed = {
        place: source.choice(mistakes[place]) for place in places[: round(rate * editor.words)]
    }
    return editor.replaced(changed), len(changed)


def seeded(*what: Any) -> random.Random:
    """A source of random numbers that depends on these values alone, whatever else was drawn.

    Python's own ``hash`` of a text differs from one run to the next.
    """
    digest = hashlib.sha256(json.dumps(what).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))
