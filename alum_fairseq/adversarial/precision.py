"""What half precision needs: gradients that do not underflow, a start that is not rounded away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alum_fairseq.errors import UsageError

# The random start where no size was asked for, in multiples of the embeddings' root mean square,
# and the least that survives rounding: so many units of it, at a number of about that size.
NOISE_STD = 0.01
SURVIVING_ROUNDINGS = 4


def widen(x: Tensor) -> Tensor:
    """At least float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def compute_dtype(embeddings: Tensor) -> torch.dtype:
    """The type that a model's matrix products are computed in: autocast's, or the embeddings'."""
    device = embeddings.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return embeddings.dtype


def default_noise_std(embeddings: Tensor) -> float:
    """A standard deviation that survives rounding, in multiples of the root mean square."""
    return max(NOISE_STD, SURVIVING_ROUNDINGS * torch.finfo(compute_dtype(embeddings)).eps)


def pull_back(
    outputs: Tensor, upstream: Tensor, inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """Gradients at the inputs, from the gradient at the outputs of a model in half precision.

    A divergence of 1e-9 has gradients that float16 cannot hold. So they are brought to about 1 by
    a power of two, which is exact, before they enter the model's graph.

    Args:
        outputs: of the model, any shape.
        upstream: the gradient there, in a type with float32's range; overwritten.
        inputs: tensors that ``outputs`` may depend on.

    Returns:
        The gradients, None where there is no dependence, still multiplied by the second value, a
        scalar: only a gradient's length needs it to be divided out.

    Raises:
        UsageError: the outputs depend on none of the inputs.
    """
    peak = torch.stack(upstream.aminmax()).abs().amax() if upstream.numel() else upstream.sum()
    scale = torch.exp2(-torch.floor(torch.log2(peak.clamp(1e-30, 1e30))))
    scaled = upstream.mul_(scale).to(outputs.dtype)
    found: tuple[Tensor | None, ...] = (None,)
    if outputs.requires_grad:
        found = torch.autograd.grad(outputs, inputs, scaled, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise UsageError("the model's outputs do not depend on the embeddings that it was given")
    return found, scale
