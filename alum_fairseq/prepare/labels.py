"""Classes: their order, and the symbols by which fairseq knows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fairseq.data import Dictionary

_INTEGER = re.compile(r"[+-]?\d+")


def in_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels: by value where all are integers, else by their characters."""
    distinct = set(labels)
    if all(_INTEGER.fullmatch(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def label_dictionary(labels: Sequence[str], counts: Sequence[int]) -> Dictionary:
    """fairseq's dictionary of the classes, in their order.

    Its symbols are the labels themselves; where one of them cannot be a symbol (it holds a blank,
    or is one of fairseq's own), they are the numbers of the classes, from 0.
    """
    reserved = {*Dictionary().symbols, "<mask>"}
    usable = all(label.split() == [label] and label not in reserved for label in labels)
    dictionary = Dictionary()
    for i, (label, count) in enumerate(zip(labels, counts, strict=True)):
        dictionary.add_symbol(label if usable else str(i), n=count)
    return dictionary
