"""Classes: their order, and the symbols by which fairseq knows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fairseq.data import Dictionary

from alum_fairseq.errors import UsageError

_INTEGER = re.compile(r"[+-]?\d{1,4000}")  # Python reads no longer ones


def in_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels: by value where all are integers, else by their characters."""
    distinct = set(labels)
    if all(_INTEGER.fullmatch(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def matched(labels: Mapping[str, str], classes: Sequence[str], of: str) -> dict[str, str]:
    """What the labels of a data set are called in another one.

    They have the same names, in capitals or not; or all are the beginnings of the names, or the
    other way, one to one, such as e, n and c of entailment, neutral and contradiction.

    Args:
        labels: of the data set, and where each stands.
        classes: of the other one.
        of: what the other one is called.

    Raises:
        UsageError: a label is none of the classes.
    """
    folded = {name.casefold(): name for name in classes} | {name: name for name in classes}
    found = {each: folded.get(each, folded.get(each.casefold())) for each in labels}
    if None not in found.values():
        return found
    alike = {each: [name for name in classes if _begins_alike(each, name)] for each in labels}
    pairs = {each: names[0] for each, names in alike.items() if len(names) == 1}
    if len(set(pairs.values())) == len(labels) == len(classes):
        return pairs
    label = next(each for each, name in found.items() if name is None)
    where = labels[label]
    listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    if bool(_INTEGER.fullmatch(label)) != all(map(_INTEGER.fullmatch, classes)):
        raise UsageError(
            f"{where}: the label {label!r} is to match those of {of} ({listed}), but a number does "
            "not say which name it means: write names for the numbers"
        )
    raise UsageError(
        f"{where}: {of} has no label {label!r}, but {listed}: give one name to what is the same "
        "in both"
    )


def _begins_alike(one: str, other: str) -> bool:
    one, other = one.casefold(), other.casefold()
    return not _INTEGER.fullmatch(one) and (one.startswith(other) or other.startswith(one))


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
