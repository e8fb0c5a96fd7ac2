"""``--criterion alum_sentence_prediction``: classification and regression with ALUM."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.tasks.sentence_prediction import SentencePredictionTask

from alum_fairseq.config import AlumConfig
from alum_fairseq.criterions.alum_criterion import AlumCriterion


@dataclass
class AlumSentencePredictionConfig(AlumConfig, SentencePredictionConfig):
    """Options of ``sentence_prediction``, and ALUM's."""


@register_criterion("alum_sentence_prediction", dataclass=AlumSentencePredictionConfig)
class AlumSentencePrediction(AlumCriterion, SentencePredictionCriterion):
    """``sentence_prediction`` plus the divergence of the predictions; squared for regression."""

    stage = "finetuning"
    tasks = (SentencePredictionTask,)

    @classmethod
    def predicts_numbers(cls, cfg: Any) -> bool:
        """Whether ``--regression-target`` was given."""
        return cfg.regression_target

    def logging_outputs_can_be_summed(self) -> bool:
        """Not in validation for F1, MCC and correlation, which are made of all predictions.

        fairseq's own says that they can, and fails at the sum of lists on several GPUs.
        """
        return self.training or not self.keep_pred_and_targ
