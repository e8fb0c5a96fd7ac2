"""``--criterion alum_sentence_prediction``: classification and regression with ALUM."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from torch import nn

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.encoder.modes import unwrap
from alum_fairseq.problems.classification import Classification
from alum_fairseq.problems.problem import Problem
from alum_fairseq.problems.regression import Regression

# Factors of what fairseq's criterion adds to the loss of every batch, of the parameters alone.
_PENALTIES = ("mha_reg_scale_factor", "ffn_reg_scale_factor")


@dataclass
class AlumSentencePredictionConfig(AlumConfig, SentencePredictionConfig):
    """Options of ``sentence_prediction``, and ALUM's."""


@register_criterion("alum_sentence_prediction", dataclass=AlumSentencePredictionConfig)
class AlumSentencePrediction(AlumCriterion, SentencePredictionCriterion):
    """``sentence_prediction`` plus the divergence of the predictions; squared for regression."""

    name = "alum_sentence_prediction"
    stage = "finetuning"
    tasks = (SentencePredictionTask,)

    @classmethod
    def problem_of(cls, cfg: Any) -> Problem:
        """Regression with ``--regression-target``, else classification."""
        return Regression() if cfg.regression_target else Classification()

    @contextmanager
    def without_penalties(self, model: nn.Module) -> Iterator[None]:
        """Inside, ``--mha-reg-scale-factor`` and ``--ffn-reg-scale-factor`` are 0."""
        args = getattr(unwrap(model), "args", None)
        before = {name: getattr(args, name) for name in _PENALTIES if hasattr(args, name)}
        try:
            for name in before:
                setattr(args, name, 0.0)
            yield
        finally:
            for name, factor in before.items():
                setattr(args, name, factor)

    def logging_outputs_can_be_summed(self) -> bool:
        """Not in validation for F1, MCC and correlation, which are made of all predictions.

        fairseq's own says that they can, and fails at the sum of lists on several GPUs.
        """
        return self.training or not self.keep_pred_and_targ
