"""The loss and the metrics of predictions about tokens, which fairseq has no criterion for."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from torch import nn

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.updates import Output
from alum_fairseq.models.token_head import TOKEN_HEAD
from alum_fairseq.problems import TokenProblem

_RECORDS = "_records"


class _Tokens(FairseqCriterion):
    """The loss of a head for every token; in validation also the records of its problem."""

    problem_class: ClassVar[type[TokenProblem]]

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> Output:
        """The loss of a batch, summed, and what is logged of it."""
        outputs = model(
            **sample["net_input"], features_only=True, classification_head_name=TOKEN_HEAD
        )[0]
        logits = self.problem.logits_of([outputs], sample)
        loss, count = self.problem.token_loss(logits, sample["target"])
        log = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": count,
        }
        if not self.training:  # the momentum model is never trained
            log[_RECORDS] = self.problem.records(outputs.detach(), sample["rows"])
        return loss, count, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss per prediction, in bits; in validation the metrics of the problem."""
        keys = ("loss", "sample_size")
        loss, count = (sum(log.get(key, 0) for log in logging_outputs) for key in keys)
        mean = loss / torch.as_tensor(count).clamp(min=1)
        metrics.log_scalar("loss", mean / math.log(2), count, round=3)
        found = [log[_RECORDS] for log in logging_outputs if _RECORDS in log]
        if not found:
            return
        metrics.log_concat_tensor(_RECORDS, torch.cat(found))
        for name in cls.problem_class.summary(torch.cat(found)):
            metrics.log_derived(
                name, lambda meters, name=name: cls._summary(meters[_RECORDS].tensor)[name]
            )

    @classmethod
    def _summary(cls, records: Any) -> dict[str, float]:
        found = cls.problem_class.summary(records)
        return {name: round(value, 2) for name, value in found.items()}

    def logging_outputs_can_be_summed(self) -> bool:
        """Not in validation, whose metrics are made of all predictions."""
        return self.training


class TokenCriterion(AlumCriterion, _Tokens):
    """The base of the criteria about tokens."""

    stage = "finetuning"

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        self.problem = getattr(task, "problem", self.problem)

    @classmethod
    def fits(cls, task: Any) -> bool:
        """The task of the same problem alone."""
        return getattr(task, "problem_class", None) is cls.problem_class

    @classmethod
    def problem_of(cls, cfg: Any) -> TokenProblem:
        """That of the class, until the task says more of it."""
        return cls.problem_class()

    def logging_outputs_can_be_summed(self) -> bool:
        """As the criterion that is extended says."""
        return self.training
