"""Task loss plus a consistency loss: ALUM, and VAT and R3F, which are settings of it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from typing_extensions import override

from alum_fairseq.adversarial.method import Clean, Method, Result, Update


class Regularize(Method):
    r""":math:`L + \alpha\, [D(a \| sg\,c) + D(c \| sg\,a)]` (Liu et al. 2020, Algorithm 1).

    Here a is the prediction under the perturbation, c the clean one, and sg the stop-gradient. With
    ``sides="adversarial"`` the clean prediction is a fixed target: :math:`L + \alpha\, D(a \|
    sg\,c)` (VAT). Symmetric divergences have one term, with gradients into both sides (R3F).
    """

    @override
    def loss(self, update: Update, alpha: float) -> Result:
        result = self.attack(update)
        if result.delta is None:
            return result
        return replace(result, loss=result.loss + alpha * result.adversarial_loss)

    @override
    def adversarial_loss(
        self, update: Update, clean: Clean, delta: Tensor, logits: Tensor
    ) -> Tensor:
        if self.preset.sides == "adversarial":
            return self.divergence.total(logits, clean.logits.detach(), clean.weights)
        return self.divergence.consistency(logits, clean.logits, clean.weights)
