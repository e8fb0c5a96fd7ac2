"""The base of every problem type, and the registry of them.

The types are what transformers calls a model's ``problem_type``: classification, regression, and so
on. A problem says what the logits of a model mean, and whatever follows from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from typing_extensions import Self

from alum_fairseq.errors import UsageError

# What data sets have in place of a label: Hugging Face's, and the Stanford NLI corpus.
UNLABELLED = ("-1", "-")

Text = TypeVar("Text")
_Type = TypeVar("_Type", bound="type[Problem]")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example.

    Attributes:
        label: the most probable class; None for regression.
        probabilities: of every class, in their order; empty for regression.
        value: the predicted number; None for classification.
    """

    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a model says of an example, in the light of the right answer.

    Attributes:
        prediction: the most probable label; for regression the number.
        correct: whether it is right; for regression: near enough.
        loss: of the right answer, in nats; for regression the squared error. What attacks raise.
        confidence: the largest probability; None for regression.
        details: further numbers by which the problem says how right it is.
    """

    prediction: str | float
    correct: bool
    loss: float
    confidence: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """All of it by name, the details beside the rest."""
        return {name: said for name, said in vars(self).items() if name != "details"} | self.details


class Problem(ABC):
    """What a training objective needs to know of a model's logits.

    Attributes:
        name: in :data:`PROBLEMS`.
        divergence: that of two predictions, unless the user chooses another; a name in
            :data:`alum_fairseq.adversarial.divergences.DIVERGENCES`.
        categorical: whether logits stand for a distribution over their last dimension, rather than
            for themselves.
        problem_type: what transformers calls it in the ``config.json`` of a classifier.
    """

    name: ClassVar[str]
    problem_type: ClassVar[str] = "single_label_classification"
    divergence: ClassVar[str] = "kl"
    categorical: ClassVar[bool] = True

    def logits(self, outputs: Sequence[Tensor]) -> Tensor:
        """The logits of a batch, from what the model returned, call by call, for the loss.

        Raises:
            UsageError: the criterion called the model more than once, or not at all.
        """
        if len(outputs) != 1:
            raise UsageError(
                f"the criterion called the model {len(outputs)} times for one batch: ALUM must be "
                "told how the outputs make up one prediction (Problem.logits)"
            )
        return outputs[0]

    def logits_of(self, outputs: Sequence[Tensor], sample: Mapping[str, Any]) -> Tensor:
        """:meth:`logits`, where they depend on more of the batch than the outputs."""
        return self.logits(outputs)

    def weights(self, target: Tensor, logits: Tensor, padding_idx: int) -> Tensor | None:
        """The weight of each prediction in a sum over the batch; None: all weigh 1.

        Args:
            target: of the batch, as fairseq's task makes it.
            logits: ``... x C``.
            padding_idx: what stands in the target where there is nothing to predict.

        Returns:
            One weight for each prediction, ``logits.shape[:-1]``. A divergence that is taken entry
            by entry (``categorical`` is False) has values of the shape of the logits: for it add a
            last dimension of 1.
        """
        return None


@dataclass(frozen=True)
class SupervisedProblem(Problem):
    """A problem whose right answers stand in a table: a head predicts them, commands score them.

    Attributes:
        labels: the classes, in the order of the logits; empty where answers are no classes.
        scale: what numbers were divided by for training; 1 for classes.
        has_classes: whether the answers are classes.
        binarized_labels: whether fairseq reads the labels as symbols of a dictionary, rather than
            as lines of text.
        share_right: what the share of right answers is called.
        edited: which texts of an example attacks on words change, from 0; None: all.
        word_by_word: whether the answer speaks of every word, so that none may come or go.
    """

    labels: tuple[str, ...] = ()
    scale: float = 1.0
    has_classes: ClassVar[bool] = True
    binarized_labels: ClassVar[bool] = False
    share_right: ClassVar[str] = "Accuracy"
    edited: ClassVar[tuple[int, ...] | None] = None
    word_by_word: ClassVar[bool] = False

    # ---------------------------------------------------------------- the task, and its data

    @property
    @abstractmethod
    def answers(self) -> str:
        """What the answers are, for people to read."""

    @abstractmethod
    def train_options(self) -> list[str]:
        """The options of ``fairseq-train`` that name the problem."""

    def check_texts(self, count: int) -> None:
        """Raise a UsageError unless an example may have so many texts."""
        if not 1 <= count <= 2:
            raise UsageError(f"an example has 1 or 2 texts, not {count}")

    def check_columns(self, count: int, place: str) -> None:
        """Raise a UsageError, which begins with the place, unless so many texts fit the labels."""

    def inputs(self, texts: Sequence[Text]) -> list[tuple[Text, ...]]:
        """How the texts of an example make up the inputs of the model: one, or several."""
        return [tuple(texts)]

    @abstractmethod
    def answer(self, text: str) -> int | float:
        """The number of a table's class, or the number itself; a UsageError if it is neither."""

    def check_answer(self, text: str, place: str) -> None:
        """Raise a UsageError, which begins with the place, if a label is no :meth:`answer`."""
        try:
            self.answer(text)
        except UsageError as error:
            hint = f"; if it means that there is none, give --no-label {text}"
            hint = hint if text in UNLABELLED else ""
            raise UsageError(f"{place}: {error}{hint}") from None

    def classes_in(self, label: str) -> list[str]:
        """The classes that a label has: itself."""
        return [label]

    @abstractmethod
    def label_line(self, text: str) -> str:
        """A label as fairseq reads it in a ``.label`` file: see :meth:`from_label_line`."""

    @abstractmethod
    def from_label_line(self, line: str) -> str:
        """The inverse of :meth:`label_line`; a ValueError if the line is no label."""

    # ---------------------------------------------------------------- what a model answers

    @abstractmethod
    def prediction(self, logits: Tensor) -> Prediction:
        """What the logits (``C``) of one example say."""

    def entries(self, prediction: Prediction) -> dict[str, Any]:
        """A prediction as an object of JSON."""
        return {name: value for name, value in vars(prediction).items() if value not in (None, {})}

    def row(self, prediction: Prediction) -> dict[str, str]:
        """A prediction as a row of a table, by the names of the columns."""
        label = {} if prediction.label is None else {"label": prediction.label}
        value = {} if prediction.value is None else {"value": f"{prediction.value:.6g}"}
        probabilities = {f"p({k})": f"{p:.6f}" for k, p in prediction.probabilities.items()}
        return label | probabilities | value

    @abstractmethod
    def scores(self, predictions: Sequence[Prediction], answers: Sequence[str]) -> dict[str, float]:
        """fairseq's metrics of one or more predictions, given the labels of the table."""

    # ------------ right and wrong, for attacks: logits are B x C, targets what `targets` returns

    @abstractmethod
    def within(self, tolerance: float | None, answers: Sequence[str]) -> Self:
        """The same problem with a tolerance: how far from the answer a number still is right.

        Args:
            tolerance: above 0; None: half the standard deviation of the answers.
            answers: the labels of the examples, as they stand in the table.

        Raises:
            UsageError: the problem knows no tolerance, or it is out of range.
        """

    @abstractmethod
    def targets(self, accepted: Sequence[Sequence[str]]) -> Tensor:
        """The right answers of examples, as the methods below take them.

        Args:
            accepted: for each example the labels that are right: one or, of classes, several.

        Returns:
            ``B`` rows: whether each class is right (bool, ``B x C``), or numbers (float64, ``B``).
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example (``B``): nats, or the squared error in the table's unit."""

    def attack_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What an attack climbs (``B``): it rises with :meth:`loss`, and stays steep."""
        return self.loss(logits, targets)

    @abstractmethod
    def margins(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How far predictions are from each of R ways to be wrong, in the unit of the logits.

        ``B x R``: negative where a prediction is wrong, infinite where there is no such way.
        """

    @abstractmethod
    def verdict(self, logits: Tensor, target: Tensor) -> Verdict:
        """Whether one example is right: its logits are ``C``, its target a row of the targets."""

    def fixed(self, texts: Sequence[str], label: str) -> list[tuple[int, int, int]]:
        """What attacks on words leave as it is: the text, the first character, the one after."""
        return []

    def shown(self, label: str) -> str:
        """A label, for people to read."""
        return label


PROBLEMS: dict[str, type[Problem]] = {}


def register_problem(problem: _Type) -> _Type:
    """Add a class to :data:`PROBLEMS` by its ``name``, which must be free; a decorator."""
    if PROBLEMS.setdefault(problem.name, problem) is not problem:
        raise UsageError(f"there is a problem {problem.name!r} already: give yours another name")
    return problem
