"""How adversarial a perturbation is: its size, and a random one to compare it with."""

from __future__ import annotations

import torch
from torch import Tensor

from alum_fairseq.adversarial.method import Method, Result, Update, perturbed
from alum_fairseq.adversarial.norms import Norm, as_factor, get_norm


def random_like(
    ball: Norm, delta: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """A Gaussian direction with the Euclidean length that ``delta`` has, vector by vector.

    Euclidean whatever the ball's norm, so that noise of every kind has gain 1: random signs are
    some three times as long as a Gaussian direction of the same infinity norm.

    Args:
        ball: whose scope says what one vector is.
        delta: ``(B, T, D)``.
        mask: ``(B, T)``, true on tokens that are perturbed.
        generator: source of the direction; torch's default generator if not given.

    Returns:
        ``(B, T, D)``. What ``D(adversarial) / D(this)`` is called the *gain*.
    """
    length = get_norm("l2", ball.scope)
    noise = torch.randn(delta.shape, dtype=delta.dtype, device=delta.device, generator=generator)
    return length.normalize(noise * as_factor(mask, delta)) * length.size(delta)


def mean_size(ball: Norm, delta: Tensor, mask: Tensor | None = None) -> Tensor:
    """The norm of ``delta``, averaged over its vectors (of padding, none): a scalar.

    In the units of the embeddings.

    Args:
        ball: the norm, and what one vector is.
        delta: ``(B, T, D)``.
        mask: ``(B, T)``, true on tokens that are perturbed.
    """
    size = ball.size(delta).squeeze(-1)
    counted = as_factor(mask, delta).squeeze(-1)
    if ball.scope == "sentence":
        counted = counted.amax(-1, keepdim=True)
    counted = counted.expand_as(size)
    return (size * counted).sum() / counted.sum().clamp_min(1)


@torch.no_grad()
def gain_of(
    method: Method, update: Update, result: Result, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The divergence that a perturbation causes, and that of a random one as long: scalars.

    Args:
        method: whose divergence it is.
        update: the batch.
        result: what came of it; it has a ``delta``.
        generator: source of the random direction; torch's default generator if not given.
    """
    clean, ball = result.clean, method.adversary.ball
    embeddings, logits = clean.embeddings.detach(), result.logits
    direction = random_like(ball, result.delta, clean.mask, generator)
    if logits is None:
        logits = update.predict(perturbed(embeddings, result.delta))
    randomly = update.predict(perturbed(embeddings, direction))
    found, by_chance = (
        method.divergence.total(each.detach(), clean.logits.detach(), clean.weights)
        for each in (logits, randomly)
    )
    return found, by_chance
