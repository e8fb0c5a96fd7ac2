"""Synonyms from WordNet (Fellbaum 1998), read with NLTK, as substitutes of words."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.robustness.attacks.words import written_like

_LEXICOGRAPHERS = 45  # the files that WordNet was compiled from, lexnames(5WN)


@cache
def wordnet_synonyms(folder: Path | None = None) -> Callable[[str], list[str]]:
    """Candidates that share a meaning with the word, the most common meaning first.

    They are single words of letters alone. WordNet holds base forms, and nothing is inflected here:
    an inflected word ("films", "went") has no candidates, rather than ungrammatical ones. Whether
    a meaning fits the sentence is not looked at.

    Args:
        folder: of the dictionary files (``data.noun``, ``index.noun``, ...), such as
            ``/usr/share/wordnet`` of Debian's ``wordnet-base``; None: NLTK's own copy.

    Returns:
        A function from a word to its synonyms, with capitals where the word has them.

    Raises:
        UsageError: NLTK or its copy of WordNet is not installed, or the folder cannot be read.
    """
    wordnet = _load(folder)

    @cache
    def synonyms(word: str) -> list[str]:
        base = word.lower()
        found = [
            synonym
            for synset in wordnet.synsets(base)
            if base in (meant := _by_frequency(synset))
            for synonym in meant
            if synonym.isalpha() and synonym != base
        ]
        return [written_like(word, synonym) for synonym in dict.fromkeys(found)]

    return synonyms


def _load(folder: Path | None) -> Any:
    try:
        from nltk.corpus import wordnet

        if folder is None:
            wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        install = "pip install nltk, then " if isinstance(error, ImportError) else ""
        raise UsageError(
            f"substitution by synonyms needs NLTK's WordNet: {install}python -m nltk.downloader "
            "wordnet; or name a folder of dictionary files, such as that of Debian's "
            "wordnet-base: --wordnet /usr/share/wordnet"
        ) from None
    return wordnet if folder is None else _read(folder)


def _read(folder: Path) -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            if file == "lexnames" and not (folder / file).is_file():  # Debian leaves it out
                numbers = range(_LEXICOGRAPHERS)
                return io.StringIO("".join(f"{number:02d} {number} 0\n" for number in numbers))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """From the numbers of WordNet 3.0, for other languages alone."""

    folder = folder.resolve()
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))  # it reads nothing from elsewhere
    try:
        return Reader(str(folder), False)  # no other languages; None is warned of
    except (OSError, ValueError) as error:
        raise UsageError(f"--wordnet {folder} cannot be read: {one_line(error)}") from None


def _by_frequency(synset: Any) -> list[str]:
    """The words of a meaning, first those that WordNet's sample texts have most often for it."""
    lemmas = sorted(synset.lemmas(), key=lambda lemma: (-lemma.count(), lemma.name()))
    return [lemma.name().lower() for lemma in lemmas]
