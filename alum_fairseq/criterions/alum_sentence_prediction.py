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
from torch import Tensor, nn

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.data.vocabulary import class_names
from alum_fairseq.encoder.modes import unwrap
from alum_fairseq.errors import UsageError
from alum_fairseq.problems.classification import Classification
from alum_fairseq.problems.problem import Problem
from alum_fairseq.problems.regression import Regression

# Factors of what fairseq's criterion adds to the loss of every batch, of the parameters alone.
_PENALTIES = ("mha_reg_scale_factor", "ffn_reg_scale_factor")


class _ClassNumbers:
    """In the place of the classes' dictionary: numbers from 0, of which F1 finds class 1.

    fairseq takes their names for numbers, and has F1 find the class named 1.
    """

    nspecial = 0

    @staticmethod
    def string(classes: Tensor) -> str:
        return " ".join(map(str, classes.tolist()))


def _numbered(dictionary: Any) -> bool:
    """Whether the classes of a dictionary have names that fairseq can take for numbers."""
    names = class_names(dictionary)
    return "1" in names and all(name.removeprefix("-").isdecimal() for name in names)


@dataclass
class AlumSentencePredictionConfig(AlumConfig, SentencePredictionConfig):
    """Options of ``sentence_prediction``, and ALUM's."""


@register_criterion("alum_sentence_prediction", dataclass=AlumSentencePredictionConfig)
class AlumSentencePrediction(AlumCriterion, SentencePredictionCriterion):
    """``sentence_prediction`` plus the divergence of the predictions; squared for regression."""

    name = "alum_sentence_prediction"
    stage = "finetuning"
    tasks = (SentencePredictionTask,)

    def __init__(self, cfg: AlumSentencePredictionConfig, task: Any) -> None:
        super().__init__(cfg, task)
        self._check_reports(cfg, getattr(getattr(task, "cfg", None), "num_classes", 2))
        if not cfg.regression_target and not _numbered(self.label_dict):
            self.label_dict = _ClassNumbers

    def _check_reports(self, cfg: AlumSentencePredictionConfig, classes: int) -> None:
        if cfg.regression_target and (cfg.report_mcc or cfg.report_acc_and_f1):
            raise UsageError(
                "--report-mcc and --report-acc-and-f1 are for classes: leave them out with "
                "--regression-target"
            )
        if cfg.report_acc_and_f1 and classes > 2:
            raise UsageError(
                f"--report-acc-and-f1 is for two classes, and --num-classes is {classes}: leave it "
                "out; accuracy is logged in any case, and --report-mcc is for any number"
            )

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
