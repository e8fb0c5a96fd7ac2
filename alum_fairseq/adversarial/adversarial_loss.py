"""Task loss plus the task loss at the perturbed point: FGM and PGD."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from alum_fairseq.adversarial.accumulate import Accumulator
from alum_fairseq.adversarial.method import Clean, Method, Result, Update, all_finite, perturbed


class AdversarialLoss(Method):
    r""":math:`L(e) + \alpha\, L(e + \delta)`.

    FGM on embeddings (Miyato et al. 2017, arXiv 1605.07725) and PGD (Madry et al. 2018, arXiv
    1706.06083). An ascent on the task's loss that starts at zero has its first gradient from the
    clean pass: FGM needs no pass of its own.
    """

    accumulates = True
    unused = frozenset({"proximal", "sides", "memory"})

    @override
    def loss(self, update: Update, alpha: float) -> Result:
        clean = update.clean("above")
        if clean.embeddings is None:
            return Result(clean.loss, clean)
        total = Accumulator(update, clean)
        gradient = total.add(clean.loss)
        known = self.preset.objective == "task-loss" and self.adversary.start == "zero"
        delta = self.perturb(update, clean, gradient if known else None)
        adversarial = update.task_loss(perturbed(clean.embeddings, delta))
        total.add(adversarial, alpha)
        loss = total.value()
        if not all_finite(delta, adversarial):  # the sum has done without it
            return Result(loss, clean)
        return Result(loss, clean, delta, adversarial_loss=adversarial)

    @override
    def adversarial_loss(
        self, update: Update, clean: Clean, delta: Tensor, logits: Tensor
    ) -> Tensor:
        return update.task_loss(perturbed(clean.embeddings, delta))
