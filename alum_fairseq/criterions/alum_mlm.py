"""``--criterion alum_mlm``: masked language modelling with ALUM."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask
from torch import Tensor

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.options import AlumConfig


@dataclass
class AlumMlmConfig(AlumConfig, MaskedLmConfig):
    """Options of ``masked_lm``, and ALUM's."""


@register_criterion("alum_mlm", dataclass=AlumMlmConfig)
class AlumMlm(AlumCriterion, MaskedLmLoss):
    """``masked_lm`` plus the divergence of the predictions at masked positions."""

    stage = "pretraining"
    tasks = (MaskedLMTask, MultiLingualMaskedLMTask)

    def prediction_weights(self, sample: dict[str, Any], logits: Tensor) -> Tensor | None:
        """Nothing counts where nothing is masked: fairseq projects all tokens of such a batch."""
        weights = sample["target"].ne(self.padding_idx).float()
        if logits.dim() == 2:
            if len(logits) != weights.numel():
                return None
            weights = weights.flatten()  # a GPU's form of the same: (B * T, V)
        # Else no token is masked, or it is a TPU: (B, T, V).
        return weights if self.alum.adversary.measure.categorical else weights.unsqueeze(-1)

    def prediction_labels(self, sample: dict[str, Any], logits: Tensor) -> Tensor:
        """The words behind the masks; padding where there is none, whose weight is 0."""
        target = sample["target"]
        if logits.dim() == 3:
            return target
        if len(logits) == target.numel():
            return target.flatten()
        return target[target.ne(self.padding_idx)]
