"""What the parts of a robustness measurement hand to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alum_fairseq.problems import Verdict as Verdict

Texts = tuple[str, ...]

# What a part notes about an example, fit for JSON.
Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A labelled example.

    Attributes:
        number: its place in the data, from 0.
        texts: one text, a pair, or for multiple choice the context and the candidates.
        answer: the label as it stands in the data; for regression a number.
        accepted: the answers that count as right where that is more than one, as for a set that
            knows "entailment" and "non-entailment" alone; empty: ``answer``.
        name: what its author calls it, or None.
    """

    number: int
    texts: Texts
    answer: str
    accepted: tuple[str, ...] = ()
    name: str | None = None
