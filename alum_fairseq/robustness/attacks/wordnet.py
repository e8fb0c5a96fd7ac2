"""Synonyms from WordNet (Fellbaum 1998), read with NLTK, as substitutes of words."""

from __future__ import annotations

from typing import Any

from alum_fairseq.errors import UsageError, require_count
from alum_fairseq.robustness.types import Candidates


def wordnet_synonyms(at_most: int = 8) -> Candidates:
    """Candidates that share a meaning with the word, the most common meaning first.

    They are single words of letters alone. WordNet holds base forms, and nothing is inflected here:
    an inflected word ("films", "went") has no candidates, rather than ungrammatical ones. Whether
    a meaning fits the sentence is not looked at.

    Args:
        at_most: how many to give for a word.

    Returns:
        A function from a word to its synonyms, with capitals where the word has them.

    Raises:
        UsageError: NLTK or its copy of WordNet is not installed, or ``at_most`` is below 1.
    """
    require_count("at_most", at_most)
    wordnet = _load()

    def synonyms(word: str) -> list[str]:
        base = word.lower()
        found = [
            synonym
            for synset in wordnet.synsets(base)
            if base in (meant := _by_frequency(synset))
            for synonym in meant
            if synonym.isalpha() and synonym != base
        ]
        return [_written_like(word, synonym) for synonym in dict.fromkeys(found)][:at_most]

    return synonyms


def _load() -> Any:
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        raise UsageError(
            "substitution by synonyms needs NLTK and its WordNet: pip install nltk, then "
            "python -m nltk.downloader wordnet"
        ) from None
    return wordnet


def _by_frequency(synset: Any) -> list[str]:
    """The words of a meaning, first those that WordNet's sample texts have most often for it."""
    lemmas = sorted(synset.lemmas(), key=lambda lemma: (-lemma.count(), lemma.name()))
    return [lemma.name().lower() for lemma in lemmas]


def _written_like(word: str, synonym: str) -> str:
    if word.isupper():
        return synonym.upper()
    return synonym.capitalize() if word[:1].isupper() else synonym
