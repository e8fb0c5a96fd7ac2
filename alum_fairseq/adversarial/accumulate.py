"""Losses whose gradients are taken one after the other, so that one graph is held at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from alum_fairseq.adversarial.method import Clean, Update
from alum_fairseq.adversarial.precision import widen


class Accumulator:
    """A weighted sum of losses of one batch, each let go of as soon as its gradients are known.

    Args:
        update: whose parameters are trained.
        clean: its clean pass, whose embeddings were cut from what lies below.
    """

    def __init__(self, update: Update, clean: Clean) -> None:
        assert clean.entries, "the clean pass must cut the embeddings off: see Clean.entries"
        self._parameters = [p for p in update.parameters if p.requires_grad]
        self._scale = update.scale
        self._below, self._entries = clean.below, clean.entries
        self._total = clean.loss.detach().new_zeros(())
        self._valid = torch.full_like(self._total, torch.nan)  # 1.0 once a loss was finite
        self._sums: list[Tensor | None] = [None] * (len(self._entries) + len(self._parameters))

    def add(self, loss: Tensor, weight: float = 1.0) -> Tensor:
        """Add ``weight * loss``; one that is not finite counts as zero, beside one that is.

        Args:
            loss: a scalar; its graph is freed.
            weight: its share.

        Returns:
            The gradient of ``loss`` at the embeddings, ``(B, T, D)``, at least float32.
        """
        upstream = torch.full_like(loss, self._scale)
        inputs = [*self._entries, *self._parameters]
        found = torch.autograd.grad(loss, inputs, upstream, allow_unused=True)
        finite = torch.isfinite(loss.detach())
        self._total += torch.where(finite, weight * loss.detach(), 0.0)
        self._valid = torch.where(finite, 1.0, self._valid)
        for i, gradient in enumerate(found):
            if gradient is not None:
                added = torch.where(finite, weight * gradient, 0.0)
                self._sums[i] = added if self._sums[i] is None else self._sums[i].add_(added)
        gradients = [widen(gradient) for gradient in found[: len(self._entries)]]
        return torch.cat(gradients, dim=1) / self._scale

    def value(self) -> Tensor:
        """The sum, a scalar in the graph of the parameters: its backward pass gives what is known.

        They accumulate as the gradients of any other graph do, hooks and all, which is what data
        parallel wrappers wait for. NaN, gradients and all, where no loss was finite: the model is
        not, and who trains it must see that.
        """
        parts = len(self._entries)
        upstream, sums = self._sums[:parts], self._sums[parts:]
        if self._below[0].requires_grad:
            below = torch.autograd.grad(self._below, self._parameters, upstream, allow_unused=True)
            sums = [_plus(a, b) for a, b in zip(sums, below, strict=True)]
        pairs = [(p, s) for p, s in zip(self._parameters, sums, strict=True) if s is not None]
        self._sums = []
        parameters, known = zip(*pairs, strict=True) if pairs else ((), ())
        value, scale = self._total * self._valid, self._scale * self._valid
        return _Known.apply(value, scale, list(known), *parameters)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


class _Known(torch.autograd.Function):
    """A value, with gradients that are known already, ``scale`` times."""

    @staticmethod
    @override
    def forward(
        ctx: Any, value: Tensor, scale: Tensor, gradients: list[Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.scale, ctx.gradients = scale, gradients
        return value.clone()

    @staticmethod
    @override
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("these gradients can be taken once only")
        factor = upstream / ctx.scale  # 1 where the scale is the one that was announced
        return None, None, None, *(gradient.mul_(factor) for gradient in gradients)
