"""A value whose gradient is worked out in the backward pass, so that nothing is kept until then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

Gradients = Callable[[Tensor], Sequence[Tensor | None]]


def deferred(value: Tensor, gradients: Gradients, parameters: Sequence[Tensor]) -> Tensor:
    """Make a value differentiable by a function that computes its gradients.

    The parameters' gradients accumulate as those of any other graph: once, hooks and all, which is
    what data parallel wrappers wait for.

    Args:
        value: a scalar, known already.
        gradients: from the gradient of the loss with respect to ``value`` to its gradients with
            respect to each of ``parameters`` (None for those it does not depend on). Called in the
            backward pass, once, under the autocast that is in force now.
        parameters: leaves that require a gradient.

    Returns:
        ``value``, in the graph of ``parameters``.
    """
    device = value.device.type
    autocast = {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }

    def under_autocast(upstream: Tensor) -> Sequence[Tensor | None]:
        with torch.enable_grad(), torch.autocast(**autocast):
            return gradients(upstream)

    return _Deferred.apply(value.detach(), under_autocast, *parameters)


class _Deferred(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @override
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("a deferred gradient can be computed once only")
        return None, None, *gradients(upstream)
