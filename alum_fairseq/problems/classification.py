"""Classification: which of several classes?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Self, override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems.problem import Prediction, SupervisedProblem, Verdict, register_problem


@register_problem
@dataclass(frozen=True)
class Classification(SupervisedProblem):
    """One logit for each class."""

    name = "classification"
    binarized_labels = True

    @property
    @override
    def answers(self) -> str:
        return ", ".join(self.labels)

    @property
    def _listed(self) -> str:
        return ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")

    @override
    def train_options(self) -> list[str]:
        return ["--num-classes", str(len(self.labels))]

    @override
    def answer(self, text: str) -> int:
        if text not in self.labels:
            raise UsageError(f"the label {text!r} is none of the classes ({self._listed})")
        return self.labels.index(text)

    @override
    def label_line(self, text: str) -> str:
        return str(self.labels.index(text))

    @override
    def from_label_line(self, line: str) -> str:
        number = int(line)
        if number not in range(len(self.labels)):
            raise ValueError(line)
        return self.labels[number]

    @override
    def prediction(self, logits: Tensor) -> Prediction:
        probabilities = logits.softmax(dim=0)
        label = self.labels[int(probabilities.argmax())]
        return Prediction(label, dict(zip(self.labels, probabilities.tolist(), strict=True)))

    @override
    def scores(self, predictions: Sequence[Prediction], answers: Sequence[str]) -> dict[str, float]:
        """``loss`` (bits per example) and ``accuracy`` (percent)."""
        pairs = list(zip(predictions, answers, strict=True))
        tiny = torch.finfo(torch.float32).tiny  # for a probability that came out as zero
        bits = [-math.log2(max(found.probabilities[answer], tiny)) for found, answer in pairs]
        right = [found.label == answer for found, answer in pairs]
        return {"loss": sum(bits) / len(bits), "accuracy": 100 * sum(right) / len(right)}

    @override
    def within(self, tolerance: float | None, answers: Sequence[str]) -> Self:
        if tolerance is not None:
            raise UsageError("--tolerance is for regression, but the model has classes")
        return self

    @override
    def targets(self, accepted: Sequence[Sequence[str]]) -> Tensor:
        return torch.tensor([[label in right for label in self.labels] for right in accepted])

    @override
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy; of several right classes, that of their sum."""
        return -logits.log_softmax(1).masked_fill(~targets, -math.inf).logsumexp(1)

    @override
    def attack_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The logarithm of the odds against the right answer.

        It rises with the cross entropy, and its gradient does not vanish where the model is sure.
        """
        wrong = logits.masked_fill(targets, -math.inf).logsumexp(1)
        return wrong - logits.masked_fill(~targets, -math.inf).logsumexp(1)

    @override
    def margins(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The largest logit of a right class, less that of each wrong one (``B x C``)."""
        best = logits.masked_fill(~targets, -math.inf).amax(1, keepdim=True)
        return best - logits.masked_fill(targets, -math.inf)

    @override
    def verdict(self, logits: Tensor, target: Tensor) -> Verdict:
        logits, target = logits.double(), target.to(logits.device)
        best = int(logits.argmax())
        # The cross entropy, by the odds: it still tells answers apart that are all but certain.
        loss = softplus(self.attack_loss(logits.unsqueeze(0), target.unsqueeze(0)))
        confidence = float(logits.softmax(0)[best])
        return Verdict(self.labels[best], bool(target[best]), float(loss), confidence)
