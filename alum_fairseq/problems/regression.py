"""Regression: which number?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import pstdev

import torch
from torch import Tensor
from typing_extensions import Self, override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems.problem import Prediction, SupervisedProblem, Verdict, register_problem


@register_problem
@dataclass(frozen=True)
class Regression(SupervisedProblem):
    """One logit, which is the number itself.

    Attributes:
        tolerance: how far from the answer a prediction still is right, in the table's unit.
    """

    name = "regression"
    problem_type = "regression"
    divergence = "squared_error"
    categorical = False
    has_classes = False
    share_right = "Within tolerance"
    tolerance: float = 0.0

    @property
    @override
    def answers(self) -> str:
        return "numbers"

    @override
    def train_options(self) -> list[str]:
        return ["--num-classes", "1", "--regression-target"]

    @override
    def answer(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"the label {text!r} is no number")
        return value

    @override
    def label_line(self, text: str) -> str:
        return repr(float(text) / self.scale)

    @override
    def from_label_line(self, line: str) -> str:
        return repr(float(line) * self.scale)

    @override
    def prediction(self, logits: Tensor) -> Prediction:
        return Prediction(value=self.scale * float(logits[0]))

    @override
    def scores(self, predictions: Sequence[Prediction], answers: Sequence[str]) -> dict[str, float]:
        """``loss``, ``pearson`` and ``spearman``.

        The loss is the squared error per example over ln 2, as fairseq logs it. The correlations
        are in percent; one example has none.
        """
        both = torch.tensor(
            [[found.value for found in predictions], [float(answer) for answer in answers]],
            dtype=torch.float64,
        )
        loss = {"loss": float((both[0] - both[1]).square().mean()) / math.log(2)}
        if len(predictions) < 2:
            return loss
        ranks = torch.stack([_ranks(each) for each in both])
        return loss | {
            "pearson": 100 * float(torch.corrcoef(both)[0, 1]),
            "spearman": 100 * float(torch.corrcoef(ranks)[0, 1]),
        }

    @override
    def within(self, tolerance: float | None, answers: Sequence[str]) -> Self:
        if tolerance is None:
            tolerance = pstdev(map(float, answers)) / 2
            if not tolerance:
                raise UsageError(
                    "all answers are equal: give --tolerance, how far off is still right"
                )
        if not 0 < tolerance < math.inf:
            raise UsageError(f"--tolerance is {tolerance:g}: it must be above 0, and finite")
        return replace(self, tolerance=tolerance)

    @override
    def targets(self, accepted: Sequence[Sequence[str]]) -> Tensor:
        return torch.tensor([float(right[0]) for right in accepted], dtype=torch.float64)

    @override
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The squared error, in the table's unit."""
        return (self.scale * logits[:, 0] - targets).square()

    @override
    def margins(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How far a number is from being too large, and from being too small (``B x 2``)."""
        error = self.scale * logits[:, 0].double() - targets
        return torch.stack([self.tolerance - error, self.tolerance + error], 1).to(logits)

    @override
    def verdict(self, logits: Tensor, target: Tensor) -> Verdict:
        value = self.scale * float(logits[0])
        error = abs(value - float(target))
        return Verdict(value, error <= self.tolerance, error**2)


def _ranks(values: Tensor) -> Tensor:
    """From 1; equal values share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts - 1) / 2)[place].to(values.dtype)
