"""``--criterion alum_mlm``: masked language modelling with ALUM."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.problems.masked_lm import MaskedLM
from alum_fairseq.problems.problem import Problem


@dataclass
class AlumMlmConfig(AlumConfig, MaskedLmConfig):
    """Options of ``masked_lm``, and ALUM's."""


@register_criterion("alum_mlm", dataclass=AlumMlmConfig)
class AlumMlm(AlumCriterion, MaskedLmLoss):
    """``masked_lm`` plus the divergence of the predictions at masked positions."""

    name = "alum_mlm"
    stage = "pretraining"
    tasks = (MaskedLMTask, MultiLingualMaskedLMTask)
    task_name = "alum_masked_lm"

    @classmethod
    def problem_of(cls, cfg: Any) -> Problem:
        """Masked language modelling."""
        return MaskedLM()
