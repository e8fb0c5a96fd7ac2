"""What the parts of a robustness measurement hand to one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Texts = tuple[str, ...]

# From a word to what may stand in its place, the best first.
Candidates = Callable[[str], list[str]]


@dataclass(frozen=True)
class Example:
    """A labelled example.

    Attributes:
        number: its place in the data, from 0.
        texts: one text, a pair, or for multiple choice the context and the candidates.
        answer: the label as it stands in the data; for regression a number.
        accepted: the answers that count as right where that is more than one, as for a set that
            knows "entailment" and "non-entailment" alone; empty: ``answer``.
    """

    number: int
    texts: Texts
    answer: str
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a model says of the texts of an example, in the light of the right answer.

    Attributes:
        prediction: the most probable label; for regression the number.
        correct: whether it is right; for regression: near enough.
        loss: of the right answer, in nats; for regression the squared error. What attacks raise.
        confidence: the largest probability; None for regression.
    """

    prediction: str | float
    correct: bool
    loss: float
    confidence: float | None = None
