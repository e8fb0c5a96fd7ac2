"""Divergences between the predictions that two sets of logits stand for.

Each function takes ``p`` and ``q``, logits of one shape, and returns one non-negative number
per prediction. Distributions are the softmax over the last dimension: ``(..., C) -> (...)``.
:func:`squared_error` compares the outputs themselves: ``(...) -> (...)``.

Half-precision logits are taken to float32 first; float64 stays float64. Gradients flow into
both arguments; a caller that wants a stop-gradient detaches.

A divergence of N predictions over a vocabulary of V words, written plainly, keeps four or five
float32 tensors of N x V for the backward pass, more than a small encoder's activations.
:class:`Divergence` works through the predictions a few rows at a time, forward and backward, and
keeps the logits alone. The gradients of ``kl``, the presets' divergence, are written out, in half
the passes over the numbers that autograd takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from alum_fairseq.adversarial.precision import widen
from alum_fairseq.errors import UsageError, require_choice

DivergenceFunction = Callable[[Tensor, Tensor], Tensor]

# From p and q, and whether the gradient for each is wanted, to those gradients of the sum.
GradientFunction = Callable[[Tensor, Tensor, list[bool]], list[Tensor | None]]


def _log_probabilities(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.log_softmax(widen(p), dim=-1), torch.log_softmax(widen(q), dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\sum_c P_c (\log P_c - \log Q_c)`, in nats."""
    log_p, log_q = _log_probabilities(p, q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _kl_terms(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q, and the logarithm of their ratio."""
    log_p, log_q = _log_probabilities(p, q)
    return log_p.exp(), log_q.exp(), log_p.sub_(log_q)


def _kl_gradients(p: Tensor, q: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    r""":math:`P_c (\log(P_c / Q_c) - KL)` for the logits of P; :math:`Q_c - P_c` for those of Q."""
    in_p, in_q, log_ratio = _kl_terms(p, q)
    return [
        _centred(log_ratio, in_p) * in_p if wanted[0] else None,
        in_q - in_p if wanted[1] else None,
    ]


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence the other way round, :math:`KL(Q \| P)`, in nats (VAT's)."""
    return kl(q, p)


def _reverse_kl_gradients(p: Tensor, q: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    return _kl_gradients(q, p, wanted[::-1])[::-1]


def _kl_both_ways(p: Tensor, q: Tensor) -> Tensor:
    """Jeffreys divergence by number; by gradient, each term's is that for its first argument."""
    in_p, in_q, log_ratio = _kl_terms(p, q)
    return ((in_p - in_q) * log_ratio).sum(-1)


def _kl_both_ways_gradients(p: Tensor, q: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    in_p, in_q, log_ratio = _kl_terms(p, q)
    return [
        _centred(log_ratio, in_p) * in_p if wanted[0] else None,
        -_centred(log_ratio, in_q) * in_q if wanted[1] else None,
    ]


def _centred(x: Tensor, weights: Tensor) -> Tensor:
    """Less its mean under a distribution."""
    return x - (x * weights).sum(-1, keepdim=True)


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


# Numbers that are worked on at a time: on a CPU about what its cache holds, on a GPU enough to
# fill it.
_AT_A_TIME = {"cpu": 1 << 18}
_AT_A_TIME_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Divergence:
    """A divergence of two sets of predictions, and what an update needs of it.

    Attributes:
        function: from two tensors of logits to one number for each prediction.
        symmetric: whether the order of the two does not matter.
        categorical: whether logits stand for a distribution over their last dimension, rather than
            for themselves.
        gradients: those of ``function``, written out; None: by autograd.
        both_ways: where it is not symmetric, the two terms of :meth:`consistency` and their
            gradients, written out; None: by autograd.
    """

    function: DivergenceFunction
    symmetric: bool
    categorical: bool = True
    gradients: GradientFunction | None = None
    both_ways: tuple[DivergenceFunction, GradientFunction] | None = None

    def total(self, p: Tensor, q: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum over the predictions, each times its weight.

        Args:
            p: logits.
            q: logits of the same shape.
            weights: of the shape of ``function(p, q)``, or without its last dimension.
        """
        return self._sum(self.function, self.gradients, p, q, weights)

    def consistency(
        self, adversarial: Tensor, clean: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        r"""ALUM's regulariser for these logits, summed over the predictions.

        :math:`D(a \| sg\,c) + D(c \| sg\,a)` with *sg* the stop-gradient (Liu et al. 2020,
        Algorithm 1, with the symmetric sum of their released code). For a symmetric divergence
        the two terms are equal, so one term with gradients into both sides is taken.

        Its gradient for either side does not pass through the other: that of the adversarial
        logits is that of ``consistency(adversarial, clean.detach())``, and so is the clean one's.

        Args:
            adversarial: logits of the perturbed input.
            clean: logits of the input as it is, same shape.
            weights: per-prediction weights, for instance 0 for those that do not count.
        """
        terms = (self.function, self.gradients)
        if not self.symmetric:
            terms = self.both_ways or (self._both_ways, None)
        return self._sum(*terms, adversarial, clean, weights)

    def _both_ways(self, p: Tensor, q: Tensor) -> Tensor:
        return self.function(p, q.detach()) + self.function(q, p.detach())

    def gradient(self, p: Tensor, q: Tensor, weights: Tensor | None = None) -> Tensor:
        """The gradient of :meth:`total` with respect to ``p``: its shape, and a type of its range.

        float32 where ``p`` is float16, in which small gradients would underflow.
        """
        dtype = torch.float32 if p.dtype == torch.float16 else p.dtype
        gradient = torch.empty_like(p, dtype=dtype)
        weights = self._fitted(weights, p)
        for rows in self._pieces(p):
            _write_gradients(
                self.function, self.gradients, p, q, weights, rows, out=(gradient, None)
            )
        return gradient

    def _sum(
        self,
        function: DivergenceFunction,
        gradients: GradientFunction | None,
        p: Tensor,
        q: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        weights = self._fitted(weights, p)
        return _Sum.apply(p, q, weights, function, gradients, list(self._pieces(p)))

    def _fitted(self, weights: Tensor | None, p: Tensor) -> Tensor | None:
        """Weights of predictions as weights of what ``function`` gives: here, of every number."""
        if weights is None or self.categorical or weights.dim() == p.dim():
            return weights
        return weights.unsqueeze(-1)

    def _pieces(self, p: Tensor) -> Iterator[slice]:
        """The rows of ``p`` (its first dimension), a few at a time."""
        if p.dim() == 0:
            yield ...
            return
        numbers = max(p[:1].numel(), 1)
        rows = max(_AT_A_TIME.get(p.device.type, _AT_A_TIME_ELSEWHERE) // numbers, 1)
        for start in range(0, len(p), rows):
            yield slice(start, start + rows)


class _Sum(torch.autograd.Function):
    """The sum of a function of rows, whose backward pass goes through the rows again."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor,
        weights: Tensor | None,
        function: DivergenceFunction,
        gradients: GradientFunction | None,
        pieces: list[slice],
    ) -> Tensor:
        ctx.save_for_backward(p, q, weights)
        ctx.function, ctx.gradients, ctx.pieces = function, gradients, pieces
        total = widen(p.new_zeros(()))
        for rows in pieces:
            values = function(widen(p[rows]), widen(q[rows]))
            if values.shape not in (p[rows].shape, p[rows].shape[:-1]):
                raise UsageError(
                    f"a divergence gave shape {tuple(values.shape)} for logits of shape "
                    f"{tuple(p[rows].shape)}: it must give one number for each prediction, "
                    f"{tuple(p[rows].shape[:-1])}"
                )
            total += (values if weights is None else values * weights[rows]).sum()
        return total

    @staticmethod
    @override
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, q, weights = ctx.saved_tensors
        out = tuple(
            torch.empty_like(x) if wanted else None
            for x, wanted in zip((p, q), ctx.needs_input_grad, strict=False)
        )
        for rows in ctx.pieces:
            _write_gradients(ctx.function, ctx.gradients, p, q, weights, rows, out, upstream)
        return *out, None, None, None, None


def _write_gradients(
    function: DivergenceFunction,
    gradients: GradientFunction | None,
    p: Tensor,
    q: Tensor,
    weights: Tensor | None,
    rows: slice,
    out: tuple[Tensor | None, Tensor | None],
    upstream: Tensor | None = None,
) -> None:
    """Write the gradients of these rows of ``p`` and ``q`` to those of ``out`` that are given."""
    wanted = [target is not None for target in out]
    inputs = [widen(x[rows].detach()) for x in (p, q)]
    factors = None if weights is None else weights[rows].to(inputs[0].dtype)
    if upstream is not None:
        factors = upstream if factors is None else factors * upstream
    if gradients is None:
        found = _by_autograd(function, inputs, wanted, factors)
    else:
        found = gradients(*inputs, wanted)
        if factors is not None:  # one for a row
            factors = factors.unsqueeze(-1) if factors.dim() else factors
            found = [None if g is None else g.mul_(factors) for g in found]
    for target, gradient in zip(out, found, strict=True):
        if target is not None:
            target[rows] = gradient


def _by_autograd(
    function: DivergenceFunction,
    inputs: list[Tensor],
    wanted: list[bool],
    factors: Tensor | None,
) -> list[Tensor | None]:
    with torch.enable_grad():
        for x, want in zip(inputs, wanted, strict=True):
            x.requires_grad_(want)
        values = function(*inputs)
        upstream = torch.ones_like(values) if factors is None else factors.expand_as(values)
        found = iter(torch.autograd.grad(values, [x for x in inputs if x.requires_grad], upstream))
    return [next(found) if want else None for want in wanted]


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(
        kl,
        symmetric=False,
        gradients=_kl_gradients,
        both_ways=(_kl_both_ways, _kl_both_ways_gradients),
    ),
    "reverse_kl": Divergence(reverse_kl, symmetric=False, gradients=_reverse_kl_gradients),
    "symmetric_kl": Divergence(symmetric_kl, symmetric=True),
    "jensen_shannon": Divergence(jensen_shannon, symmetric=True),
    "squared_hellinger": Divergence(squared_hellinger, symmetric=True),
    "squared_error": Divergence(squared_error, symmetric=True, categorical=False),
}


def get_divergence(name: str) -> Divergence:
    """Look a divergence up by name.

    Raises:
        UsageError: the name is not a key of :data:`DIVERGENCES`.
    """
    require_choice("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]
