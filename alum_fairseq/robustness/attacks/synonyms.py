"""Synonyms from a file, and the making of one from word vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from alum_fairseq import cli
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, whole_file
from alum_fairseq.robustness.attacks.words import written_like

_ROWS = 1000  # compared with all others at a time


def read_synonyms(path: Path) -> Callable[[str], list[str]]:
    """Candidates from a file: in each line a word, a tab, and its neighbours, the nearest first.

    Neighbours are separated by blanks. Words are looked up in lower case.

    Returns:
        A function from a word to its neighbours, with capitals where the word has them.

    Raises:
        UsageError: there is no such file, it is no text, or a line does not begin with a word and
            a tab.
    """
    existing_file(path)
    table: dict[str, list[str]] = {}
    for number, line in _lines(path):
        word, tab, neighbours = line.partition("\t")
        if not tab:
            raise UsageError(f"{path}:{number}: there is no tab between a word and its neighbours")
        if len(word.split()) != 1:
            raise UsageError(
                f"{path}:{number}: before the tab stands {word[:40]!r}: it must be one word"
            )
        table[word.strip().lower()] = neighbours.split()
    return lambda word: [written_like(word, found) for found in table.get(word.lower(), [])]


def write_synonyms(vectors: Path, output: Path, most: int, least: float) -> int:
    """Make a file of synonyms from word vectors in text form.

    Neighbours are those with the largest cosine (Jin et al. 2020: 50 of at least 0.7, among
    counter-fitted vectors).

    Args:
        vectors: in each line a word and its numbers, separated by blanks; a first line of two
            numbers is passed over.
        most: how many neighbours of a word.
        least: their smallest cosine.

    Returns:
        How many words have neighbours.

    Raises:
        UsageError: a line has another number of numbers than the first, or is zero throughout.
    """
    existing_file(vectors)
    words, matrix = _vectors(vectors)
    written = 0
    with whole_file(output) as path, path.open("w", encoding="utf-8") as file:
        for begin in cli.progress(range(0, len(words), _ROWS), "neighbours"):
            cosines = matrix[begin : begin + _ROWS] @ matrix.T
            for row, found in enumerate(cosines, begin):
                found[row] = -np.inf
                near = np.argsort(-found, kind="stable")[:most]
                near = [words[i] for i in near if found[i] >= least]
                if near:
                    file.write(f"{words[row]}\t{' '.join(near)}\n")
                    written += 1
    return written


def _vectors(path: Path) -> tuple[list[str], np.ndarray]:
    words, rows = [], []
    for number, line in _lines(path):
        word, *values = line.split()
        if number == 1 and len(values) == 1:
            continue
        try:
            row = np.array(values, dtype=np.float32)
        except ValueError:
            row = np.empty(0, np.float32)
        length = np.linalg.norm(row)
        if len(row) != len(rows[0] if rows else row) or not 0 < length < np.inf:
            raise UsageError(f"{path}:{number}: a word and its vector are expected, not {line:.40}")
        words.append(word)
        rows.append(row / length)
    if not rows:
        raise UsageError(f"{path} has no vectors")
    return words, np.stack(rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, counted from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8") from None
