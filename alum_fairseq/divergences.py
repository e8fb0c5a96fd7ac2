"""Divergences between the predictions that two sets of logits stand for.

Each function takes ``p`` and ``q``, logits of one shape, and returns one non-negative number
per prediction. Distributions are the softmax over the last dimension: ``(..., C) -> (...)``.
:func:`squared_error` compares the outputs themselves: ``(...) -> (...)``.

Half-precision logits are taken to float32 first; float64 stays float64. Gradients flow into
both arguments; a caller that wants a stop-gradient detaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alum_fairseq.errors import UsageError

DivergenceFunction = Callable[[Tensor, Tensor], Tensor]


def widen(logits: Tensor) -> Tensor:
    """At least float32: the log-softmax of half-precision logits loses small divergences."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_probabilities(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.log_softmax(widen(p), dim=-1), torch.log_softmax(widen(q), dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\sum_c P_c (\log P_c - \log Q_c)`, in nats."""
    log_p, log_q = _log_probabilities(p, q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    r"""Jeffreys divergence :math:`KL(P \| Q) + KL(Q \| P)`, in nats."""
    log_p, log_q = _log_probabilities(p, q)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence :math:`\tfrac12 KL(P \| M) + \tfrac12 KL(Q \| M)`, in nats.

    :math:`M = (P + Q)/2`; at most :math:`\log 2` (Lin 1991).
    """
    log_p, log_q = _log_probabilities(p, q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)


def squared_hellinger(p: Tensor, q: Tensor) -> Tensor:
    r"""Squared Hellinger distance :math:`1 - \sum_c \sqrt{P_c Q_c}`, at most 1."""
    log_p, log_q = _log_probabilities(p, q)
    return 0.5 * ((0.5 * log_p).exp() - (0.5 * log_q).exp()).square().sum(-1)


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """Squared difference of the outputs, entry by entry; the divergence for regression."""
    return (widen(p) - widen(q)).square()


@dataclass(frozen=True)
class Divergence:
    """A divergence and the one fact that the outer loss needs about it."""

    function: DivergenceFunction
    symmetric: bool

    def total(self, p: Tensor, q: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum over the predictions, each times its weight (shape of ``function(p, q)``)."""
        values = self.function(p, q)
        return (values if weights is None else values * weights).sum()

    def consistency(
        self, adversarial: Tensor, clean: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        r"""ALUM's regulariser for these logits, summed over the predictions.

        :math:`D(a \| sg\,c) + D(c \| sg\,a)` with *sg* the stop-gradient (Liu et al. 2020,
        Algorithm 1, with the symmetric sum of their released code). For a symmetric divergence
        the two terms are equal, so one term with gradients into both sides is taken.

        Args:
            adversarial: logits of the perturbed input.
            clean: logits of the input as it is, same shape.
            weights: per-prediction weights, for instance 0 for those that do not count.
        """
        if self.symmetric:
            return self.total(adversarial, clean, weights)
        return self.total(adversarial, clean.detach(), weights) + self.total(
            clean, adversarial.detach(), weights
        )


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(kl, symmetric=False),
    "symmetric_kl": Divergence(symmetric_kl, symmetric=True),
    "jensen_shannon": Divergence(jensen_shannon, symmetric=True),
    "squared_hellinger": Divergence(squared_hellinger, symmetric=True),
    "squared_error": Divergence(squared_error, symmetric=True),
}


def get_divergence(name: str) -> Divergence:
    """Look a divergence up by name.

    Raises:
        UsageError: the name is not a key of :data:`DIVERGENCES`.
    """
    try:
        return DIVERGENCES[name]
    except KeyError:
        raise UsageError(
            f"divergence {name!r} is unknown: choose one of {', '.join(DIVERGENCES)}"
        ) from None
