"""FreeLB (Zhu et al. 2020, arXiv 1909.11764), and FreeLB++ (Li et al. 2021, arXiv 2108.12777)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from alum_fairseq.adversarial.accumulate import Accumulator
from alum_fairseq.adversarial.adversary import Ascent
from alum_fairseq.adversarial.method import Clean, Method, Result, Update, all_finite, perturbed
from alum_fairseq.adversarial.presets import Preset
from alum_fairseq.errors import FieldError


class FreeLB(Method):
    r""":math:`\frac{1}{K+1} \sum_{k=0}^{K} L(e + \delta_k)` (Algorithm 1).

    The mean of the task's loss over the random start and the points after each step. Each backward
    pass gives the gradients of the parameters and that of the next step at once.
    """

    beside_clean = False
    accumulates = True
    unused = frozenset({"proximal", "sides", "memory", "alpha", "warmup_updates"})

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset)
        if preset.objective != "task-loss":
            problem = "is divergence: it must be task-loss, whose gradients FreeLB adds up"
            raise FieldError("objective", problem)

    @override
    def loss(self, update: Update, alpha: float) -> Result:
        clean = update.clean("none")
        if clean.embeddings is None:
            return Result(clean.loss, clean)
        ascent = Ascent(self.adversary, clean.embeddings, clean.mask)
        delta, total = ascent.start(update.generator), Accumulator(update, clean)
        steps = self.adversary.steps
        for step in range(steps + 1):
            loss = update.task_loss(perturbed(clean.embeddings, delta))
            gradient = total.add(loss, 1 / (steps + 1))
            if step < steps:
                delta = ascent.step(delta, gradient)
        loss = total.value()
        if not all_finite(delta):  # the sum has done without such points
            return Result(loss, clean)
        return Result(loss, clean, delta, adversarial_loss=loss)

    @override
    def adversarial_loss(
        self, update: Update, clean: Clean, delta: Tensor, logits: Tensor
    ) -> Tensor:
        return update.task_loss(perturbed(clean.embeddings, delta))
