"""SMART (Jiang et al. 2020, arXiv 1911.03437): ALUM's consistency, near a momentum model."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from alum_fairseq.adversarial.method import Clean, Update
from alum_fairseq.adversarial.regularize import Regularize


class Proximal(Regularize):
    r"""Bregman proximal point method: :math:`L + \alpha\, [R + \mu\, D(c \| \bar c)]` (eq. 2 to 5).

    R is the smoothness-inducing consistency, :math:`\bar c` the prediction of a model whose weights
    are a running mean of those trained. The paper's :math:`\mu` is :math:`\alpha \mu` here, so that
    one schedule serves both terms.
    """

    unused = frozenset()

    @override
    def adversarial_loss(
        self, update: Update, clean: Clean, delta: Tensor, logits: Tensor
    ) -> Tensor:
        smoothness = super().adversarial_loss(update, clean, delta, logits)
        if update.momentum is None:  # in validation, or left out
            return smoothness
        distance = self.divergence.total(clean.logits, update.momentum().detach(), clean.weights)
        return smoothness + self.preset.proximal * distance


def momentum_decay(num_updates: int, total_updates: float) -> float:
    """How slowly the momentum model follows: 0.99 in the first tenth of the updates, 0.999 after.

    Jiang et al. 2020, section 4.

    Args:
        num_updates: made so far.
        total_updates: of the run; 0 where there is no limit: the decay stays the early one.
    """
    return 0.999 if total_updates and num_updates >= 0.1 * total_updates else 0.99
