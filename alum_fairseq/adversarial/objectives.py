"""What the ascent climbs: the divergence from the clean prediction, or the task's own loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alum_fairseq.adversarial.divergences import Divergence
from alum_fairseq.adversarial.precision import pull_back, widen

Predict = Callable[[Tensor], Tensor]

# From perturbed embeddings (B, T, D) to what the model puts out for them, and the gradient of the
# objective there, in a type with float32's range. Called with gradients enabled.
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

OBJECTIVES = ("divergence", "task-loss")


@dataclass(frozen=True)
class DivergenceFromClean:
    r""":math:`D(f(e + \delta) \,\|\, sg\, c)`, summed over the predictions (Liu et al. 2020).

    Attributes:
        predict: from embeddings ``(B, T, D)`` to logits.
        clean_logits: what ``predict`` gives without a perturbation; any shape.
        divergence: from which the distance is measured.
        weights: one for each prediction; None: ones.
    """

    predict: Predict
    clean_logits: Tensor
    divergence: Divergence
    weights: Tensor | None = None

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the gradient of the divergence for them."""
        logits = self.predict(embeddings)
        return logits, self.divergence.gradient(logits, self.clean_logits.detach(), self.weights)


@dataclass(frozen=True)
class TaskLoss:
    r""":math:`L(f(e + \delta), y)`, the loss that training minimises (Madry et al. 2018).

    Attributes:
        loss: from embeddings ``(B, T, D)`` to the loss of the batch, a scalar.
        scale: what the loss is multiplied by before its gradient is taken, as half precision wants.
    """

    loss: Callable[[Tensor], Tensor]
    scale: float = 1.0

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient for it: 1."""
        loss = self.loss(embeddings) * self.scale
        return loss, torch.full_like(widen(loss.detach()), 1 / self.scale)


def gradient_at(objective: Objective, embeddings: Tensor, delta: Tensor, exact: bool) -> Tensor:
    """The gradient of an objective with respect to the perturbation.

    Args:
        objective: what is climbed.
        embeddings: ``(B, T, D)``.
        delta: ``(B, T, D)``.
        exact: False: times some power of two, where its length does not matter.

    Returns:
        ``(B, T, D)``, at least float32. Parameters get none.
    """
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        outputs, upstream = objective((embeddings + delta).to(embeddings.dtype))
    (gradient,), scale = pull_back(outputs, upstream, [delta])
    return widen(gradient) / scale if exact else widen(gradient)
