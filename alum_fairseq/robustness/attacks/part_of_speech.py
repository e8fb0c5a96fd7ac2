"""Whether a word in another's place keeps its part of speech, by NLTK's tagger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from alum_fairseq.robustness.attacks.words import Candidates, Editor, Place

_REACH = 2  # words on either side that the tagger looks at
# The first letters of the Penn Treebank's tags; nouns and verbs may take each other's place, as in
# TextFooler (Jin et al. 2020, section 3.1).
_CLASSES = {"NN": "noun or verb", "VB": "noun or verb", "JJ": "adjective", "RB": "adverb"}

Tag = Callable[[tuple[str, ...]], list[str]]


@cache
def tagger() -> Tag | None:
    """From words to their parts of speech; None if NLTK or its tagger's model is not installed."""
    try:
        import nltk

        nltk.pos_tag(["word"])
    except (ImportError, LookupError):
        return None
    return cache(lambda words: [_CLASSES.get(tag[:2], tag) for _, tag in nltk.pos_tag(words)])


def keep_part_of_speech(candidates: Candidates, tag: Tag | None) -> Candidates:
    """The candidates that have their word's part of speech; without a tagger all."""
    if tag is None:
        return candidates

    def kept(editor: Editor, places: Sequence[Place]) -> Mapping[Place, list[str]]:
        found = candidates(editor, places)
        return {place: _same(editor, place, words, tag) for place, words in found.items()}

    return kept


def _same(editor: Editor, place: Place, words: list[str], tag: Tag) -> list[str]:
    before, after = editor.neighbours(place, _REACH)

    def tagged(word: str) -> str:
        return tag((*before, word, *after))[len(before)]

    wanted = tagged(editor.word(place))
    return [word for word in words if tagged(word) == wanted]
