"""The loss of an update: what a method is given, and what it must give back.

A method knows no model and no framework: an update is a handful of functions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.adversarial.divergences import get_divergence
from alum_fairseq.adversarial.objectives import DivergenceFromClean, Objective, Predict, TaskLoss
from alum_fairseq.adversarial.presets import Preset
from alum_fairseq.errors import FieldError

# What has a graph in the clean pass: all of it; or, with the embeddings cut off as leaves, what
# lies above them and what lies below; or what lies below alone.
Graph = Literal["whole", "above", "none"]


@dataclass(frozen=True)
class Clean:
    """The pass of a batch as it is.

    Attributes:
        loss: the task's, a scalar.
        logits: the predictions, any shape.
        embeddings: ``(B, T, D)``, where the perturbation enters; None where the pass did not come
            by there (LayerDrop may leave out all layers), so that ``loss`` is all there is.
        mask: ``(B, T)``, true on tokens that may be perturbed.
        weights: one for each prediction, multiplied with its divergence; None: ones.
        entries: the embeddings in parts along T, where they were cut from the graph of what lies
            below: leaves. There are some unless the graph asked for was ``"whole"``.
        below: the same parts in that graph.
    """

    loss: Tensor
    logits: Tensor
    embeddings: Tensor | None = None
    mask: Tensor | None = None
    weights: Tensor | None = None
    entries: tuple[Tensor, ...] = ()
    below: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Update:
    """A batch, as functions.

    Attributes:
        clean: runs the clean pass; called once, before the others.
        predict: from embeddings ``(B, T, D)`` to logits.
        task_loss: from embeddings ``(B, T, D)`` to the task's loss, a scalar.
        parameters: those that are trained.
        generator: source of the adversary's random numbers; None: torch's default.
        scale: what the loss will be multiplied by before its backward pass (fp16's loss scaling).
        ascending: a context inside which passes serve gradients for the embeddings alone.
        momentum: runs the momentum model; its logits. None where there is no such model.
    """

    clean: Callable[[Graph], Clean]
    predict: Predict
    task_loss: Predict
    parameters: Sequence[Tensor] = ()
    generator: torch.Generator | None = None
    scale: float = 1.0
    ascending: Callable[[], AbstractContextManager[None]] = nullcontext
    momentum: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Result:
    """What came of an update.

    Attributes:
        loss: what is optimised, a scalar in the graph of the parameters.
        clean: the clean pass.
        delta: the perturbation, ``(B, T, D)``; None where there was none, or it was not finite.
        logits: the predictions under it, detached; None where they are not at hand.
        adversarial_loss: what was added to the task's loss, before its weight; a scalar.
    """

    loss: Tensor
    clean: Clean
    delta: Tensor | None = None
    logits: Tensor | None = None
    adversarial_loss: Tensor | None = None


class Method(ABC):
    """A way to make the loss of an update.

    Args:
        preset: the numbers.

    Raises:
        FieldError: they do not go with the method.
    """

    # Whether the task's loss at the perturbed point stands beside the clean one, or in its place.
    beside_clean: ClassVar[bool] = True
    # Whether gradients are taken before the backward pass, graph by graph.
    accumulates: ClassVar[bool] = False
    # Options that it has no use for, so that whoever gives one can be told.
    unused: ClassVar[frozenset[str]] = frozenset({"proximal"})

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.adversary: Adversary = preset.adversary
        self.divergence = get_divergence(preset.divergence)
        if self.adversary.steps == 0 and self.adversary.start == "zero":
            raise FieldError("steps", "is 0: it must be 1 or more where start is zero")
        if preset.objective == "divergence" and self.adversary.steps > 0:
            # At delta = 0 every divergence has its minimum, hence gradient zero.
            problem = "it must be {} when steps is above 0, since the divergence has gradient zero "
            problem += "at an unperturbed input and the ascent could not leave it"
            if self.adversary.start == "zero":
                raise FieldError("start", "is zero: " + problem.format("normal or uniform"))
            if self.adversary.noise_std == 0:
                raise FieldError("noise_std", "is 0: " + problem.format("above 0"))

    @abstractmethod
    def loss(self, update: Update, alpha: float) -> Result:
        """The loss of an update.

        Args:
            update: the batch.
            alpha: weight of what is added to the task's loss.
        """

    @abstractmethod
    def adversarial_loss(
        self, update: Update, clean: Clean, delta: Tensor, logits: Tensor
    ) -> Tensor:
        """What alpha multiplies, summed over the predictions; a scalar.

        Args:
            update: the batch.
            clean: its clean pass.
            delta: the perturbation.
            logits: the predictions under it.
        """

    def attack(self, update: Update) -> Result:
        """Find the perturbation, and what it does; the loss is the task's alone.

        A perturbation that is not finite is dropped: a graph that holds a NaN anywhere puts NaN
        into the gradients, even when multiplied by zero.
        """
        clean = update.clean("whole")
        if clean.embeddings is None:
            return Result(clean.loss, clean)
        delta = self.perturb(update, clean)
        logits = update.predict(perturbed(clean.embeddings, delta))
        if not all_finite(delta, logits):
            return Result(clean.loss, clean)
        return Result(
            clean.loss, clean, delta, logits, self.adversarial_loss(update, clean, delta, logits)
        )

    def objective(self, update: Update, clean: Clean) -> Objective:
        """What the ascent climbs."""
        if self.preset.objective == "task-loss":
            return TaskLoss(update.task_loss, update.scale)
        return DivergenceFromClean(update.predict, clean.logits, self.divergence, clean.weights)

    def perturb(self, update: Update, clean: Clean, gradient: Tensor | None = None) -> Tensor:
        """The perturbation that the method trains against, ``(B, T, D)``.

        Args:
            update: the batch.
            clean: its clean pass.
            gradient: of the objective at the start, where it is known already.
        """
        objective = self.objective(update, clean)
        with update.ascending():
            return self.adversary.perturb(
                objective, clean.embeddings, clean.mask, update.generator, gradient
            )


def perturbed(embeddings: Tensor, delta: Tensor) -> Tensor:
    """The sum, in the type of the embeddings."""
    return (embeddings + delta).to(embeddings.dtype)


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number is infinite or NaN; the one answer that an update waits for a GPU for.

    By their sum, which takes no memory; it would overflow near a total of 1e38 alone.
    """
    wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    sums = (tensor.sum(dtype=dtype) for tensor, dtype in zip(tensors, wide, strict=True))
    return math.isfinite(sum(sums).item())
