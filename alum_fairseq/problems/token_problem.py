"""Problems whose head gives numbers for every token: answers that are spans, and tags."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self, override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems.problem import SupervisedProblem

IGNORED = -100  # the target of a token that counts for nothing


@dataclass(frozen=True)
class Piece:
    """One input of the model. An example that is too long for one is read in several.

    Attributes:
        before: the tokens before the part of the text that is looked at: special ones, a question.
        body: the tokens of that part, ``n``.
        after: the tokens that end the input.
        ranges: the characters of the text that each token of the body stands for, ``n x 2``: the
            first, and the one after the last. A token of blanks alone has none.
    """

    before: Tensor
    body: Tensor
    after: Tensor
    ranges: Tensor

    @property
    def first(self) -> int:
        """The place of the body's first token in the input."""
        return len(self.before)

    @property
    def tokens(self) -> Tensor:
        """The input, ``T``."""
        return torch.cat([self.before, self.body, self.after])

    def __len__(self) -> int:
        return len(self.before) + len(self.body) + len(self.after)


@dataclass(frozen=True)
class PieceOf:
    """A piece, and the example that it is of.

    Attributes:
        number: of the example in its data.
        texts: of the example; the last is the one that is looked at.
        label: the right answer, as the problem writes it.
    """

    piece: Piece
    number: int
    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Outputs:
    """What the head put out for an example.

    Attributes:
        texts: the example.
        pieces: its inputs.
        logits: of each, ``T x C``, in float32 on the CPU.
    """

    texts: tuple[str, ...]
    pieces: Sequence[Piece]
    logits: Sequence[Tensor]

    def __truediv__(self, temperature: float) -> Self:
        return replace(self, logits=[logits / temperature for logits in self.logits])


@dataclass(frozen=True)
class Right:
    """The right answer to an example.

    Attributes:
        pieces: its inputs.
        right: what is right of them, as the problem has it.
    """

    pieces: Sequence[Piece]
    right: Tensor


@dataclass(frozen=True)
class Share:
    """A metric of many examples: a sum over them, divided by another.

    Attributes:
        key: its name in a report.
        title: for readers; ``meaning`` says in a sentence what it is.
        above: what is summed, as multiples of a verdict's details.
        below: likewise; empty: the number of examples.
    """

    key: str
    title: str
    meaning: str
    above: Mapping[str, float]
    below: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenProblem(SupervisedProblem):
    """Numbers for every token of an example's last text, which may need several inputs.

    Attributes:
        metrics: that :meth:`summary` gives, beside the loss.
        form: the format of files of such data, see :mod:`alum_fairseq.data.answers`.
        columns: what the texts are called in the files of such data.
        label_column: what the answer is.
        settings_of_data: the fields that are part of prepared data.
    """

    metrics: ClassVar[tuple[str, ...]]
    form: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    label_column: ClassVar[str]
    settings_of_data: ClassVar[tuple[str, ...]] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What a record of data has of the problem, beside its labels."""
        return {name: getattr(self, name) for name in self.settings_of_data}

    @property
    @abstractmethod
    def shares(self) -> tuple[Share, ...]:
        """Metrics beside the share of right answers."""

    # ------------------------------------------------------------------- inputs and targets

    @property
    def metric(self) -> str:
        """What the best model is chosen by; higher is better."""
        return "f1"

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers the head gives for a token."""

    @property
    def most_before(self) -> int:
        """The most tokens of the texts before the last."""
        return 0

    @abstractmethod
    def cuts(self, ranges: Tensor, text: str, room: int) -> list[tuple[int, int]]:
        """Which tokens of a text each piece has: the first, and the one after the last.

        Args:
            ranges: the characters of each token, as those of a :class:`Piece`.
            text: that they are of.
            room: the most tokens of a piece, 1 or more.
        """

    @abstractmethod
    def target(self, of: PieceOf) -> Tensor:
        """What a piece is trained for."""

    def batch_of(self, targets: Sequence[Tensor]) -> Tensor:
        """The targets of a batch, those of shorter pieces filled up."""
        return pad_sequence(list(targets), batch_first=True, padding_value=IGNORED)

    @abstractmethod
    def token_loss(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """The loss of a batch in nats, summed, and of how many predictions."""

    @abstractmethod
    def settled(self, labels: Sequence[str]) -> Self:
        """The same problem for training data with these answers."""

    # --------------------------------------------------------------- metrics of validation

    @abstractmethod
    def records(self, logits: Tensor, rows: Sequence[PieceOf]) -> Tensor:
        """What :meth:`summary` needs to know of these pieces; a row of numbers for each thing.

        Args:
            logits: of the batch, as the head gives them, ``B x T x C``.
            rows: its pieces.
        """

    @staticmethod
    @abstractmethod
    def summary(records: Tensor) -> dict[str, float]:
        """The metrics of a whole set, from its records in any order; shares in percent."""

    # ------------------------------------------------------------------ right and wrong

    @abstractmethod
    def predictions(self, logits: Tensor, right: Sequence[Right]) -> Tensor:
        """What the head puts out as distributions over the last dimension, ``B x K x V``.

        What is out of play is the same whatever the model says.

        Args:
            logits: of the pieces of each example, ``B x P x T x C``.
            right: of each example, as :meth:`right_of` gives it.
        """

    @abstractmethod
    def right_of(self, pieces: Sequence[Piece], texts: tuple[str, ...], label: str) -> Right:
        """What :meth:`loss` and :meth:`margins` need to know of the right answer to an example."""

    def of_outputs(self, outputs: Outputs, right: Right) -> Tensor:
        """:meth:`predictions` for one example, in float64."""
        padded = pad_sequence(list(outputs.logits), batch_first=True).double()
        return self.predictions(padded.unsqueeze(0), [right])

    @override
    def within(self, tolerance: float | None, answers: Sequence[str]) -> Self:
        if tolerance is not None:
            raise UsageError(f"--tolerance is for regression, but the model has {self.answers}")
        return self

    @override
    def label_line(self, text: str) -> str:
        return text

    @override
    def from_label_line(self, line: str) -> str:
        return line

    @override
    def targets(self, accepted: Sequence[Sequence[str]]) -> Sequence[str]:
        """The labels."""
        return [right[0] for right in accepted]
