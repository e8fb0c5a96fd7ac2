"""Masked language modelling: which word was there?"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from alum_fairseq.problems.problem import Problem, register_problem


@register_problem
class MaskedLM(Problem):
    """A distribution over the vocabulary for each masked token."""

    name = "masked_lm"

    @override
    def weights(self, target: Tensor, logits: Tensor, padding_idx: int) -> Tensor | None:
        """1 for a masked token and 0 for others, where the model predicts all tokens.

        fairseq's model does so when a batch has no masked token, and on a TPU: ``B x T x V``, or
        ``BT x V``. Else it predicts the masked tokens alone, and all of them count.
        """
        weights = target.ne(padding_idx).float()
        if logits.dim() == 3:
            return weights
        return weights.flatten() if len(logits) == weights.numel() else None
