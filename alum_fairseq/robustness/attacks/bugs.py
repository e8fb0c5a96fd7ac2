"""The five kinds of bugs of TextBugger (Li et al. 2019, arXiv 1812.05271, section III-B)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, zip_longest

from alum_fairseq.robustness.attacks.noise import drops, seeded, slips, swaps
from alum_fairseq.robustness.attacks.words import STOP_WORDS

Words = Callable[[str], list[str]]

_SPLIT_BELOW = 6  # letters: a longer word may come apart into two that mean something
# Lower-case letters, and what looks like them.
_LOOKS = str.maketrans("aceiloszbg", "@\u0441\u0435110$269")


def bugs(seed: int, neighbours: Words | None = None) -> Words:
    """Candidates of every kind in turn.

    A space inside a short word; an inner letter gone; two inner letters swapped; a letter replaced
    by one that looks like it, or lies beside it on the keyboard; another word of like meaning, if
    neither is a stop word. Where the paper draws one bug of a kind, here all are candidates, in an
    order that is drawn.

    Args:
        neighbours: from a word to those of like meaning, the nearest first; None: four kinds.

    Returns:
        A function from a word to distinct candidates, the same ones each time.
    """

    def candidates(word: str) -> list[str]:
        kinds = [splits(word), drops(word), swaps(word), lookalikes(word)]
        for kind, found in enumerate(kinds):
            seeded(seed, "bugs", kind, word).shuffle(found)
        if neighbours and word.lower() not in STOP_WORDS:
            kinds.append([near for near in neighbours(word) if near.lower() not in STOP_WORDS])
        in_turn = chain.from_iterable(zip_longest(*kinds))
        return list(dict.fromkeys(found for found in in_turn if found is not None))

    return candidates


def splits(word: str) -> list[str]:
    """The word with a space inside, if it is short."""
    places = range(1, len(word)) if len(word) < _SPLIT_BELOW else ()
    return [f"{word[:i]} {word[i:]}" for i in places]


def lookalikes(word: str) -> list[str]:
    """The word with a letter that another one looks like, or an inner one beside its key."""
    looks = [
        word[:i] + found + word[i + 1 :]
        for i, letter in enumerate(word)
        if (found := letter.translate(_LOOKS)) != letter
    ]
    return list(dict.fromkeys(looks + slips(word)))
