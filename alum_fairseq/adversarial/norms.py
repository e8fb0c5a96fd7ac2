"""Norms of a perturbation: its size, its direction, and the ball that it must stay in.

A perturbation has shape ``(B, T, D)``. The *scope* says what is measured as one vector: each
token (``D`` numbers) or each sentence (``T x D``). Sizes have shape ``(B, T, 1)`` or
``(B, 1, 1)``, so that they broadcast against the perturbation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from alum_fairseq.errors import UsageError, require_choice

SCOPES: dict[str, tuple[int, ...]] = {"token": (-1,), "sentence": (-2, -1)}

# Keeps `rescale` finite at a zero vector. The value is that of ALUM's released code, whose
# rule the preset `reference` reproduces.
RESCALE_FLOOR = 1e-6


class Norm(ABC):
    """A norm together with its scope.

    Args:
        scope: ``"token"`` or ``"sentence"``.

    Raises:
        UsageError: the scope is neither.
    """

    def __init__(self, scope: str) -> None:
        require_choice("norm_scope", scope, SCOPES)
        self.scope = scope
        self.dims = SCOPES[scope]

    @abstractmethod
    def size(self, x: Tensor) -> Tensor:
        """The norm of each vector in ``x``: ``(B, T, D) -> (B, T, 1)`` or ``(B, 1, 1)``."""

    @abstractmethod
    def unit(self, rms: Tensor, coordinates: Tensor) -> Tensor:
        """The norm of a vector of which every coordinate has absolute value ``rms``.

        The unit of relative sizes: an epsilon of 0.1 allows a tenth of the embeddings' root
        mean square a coordinate, whichever the norm.

        Args:
            rms: ``(B, 1, 1)``.
            coordinates: how many numbers one vector has, ``(B, 1, 1)``.
        """

    @abstractmethod
    def clip(self, x: Tensor, radius: Tensor) -> Tensor:
        """The nearest point (in Euclidean distance) to ``x`` in the ball of this radius."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The vectors of norm 1 along which a function with this gradient rises most.

        Zero where the gradient is.
        """

    def normalize(self, x: Tensor) -> Tensor:
        """``x`` with each vector divided by its own norm; zero vectors stay zero."""
        size = self.size(x)
        return x / torch.where(size > 0, size, torch.ones_like(size))

    def rescale(self, x: Tensor, radius: Tensor, floor: Tensor) -> Tensor:
        """``x`` with each vector brought to the surface of the ball, its direction kept.

        Args:
            radius: the radius of the ball.
            floor: added to the vector's size before dividing, so that zero stays zero; may itself
                be zero.
        """
        size = self.size(x) + floor
        return x * (radius / size.clamp_min(torch.finfo(size.dtype).tiny))


class LInf(Norm):
    """The largest absolute coordinate."""

    @override
    def size(self, x: Tensor) -> Tensor:
        return x.abs().amax(self.dims, keepdim=True)

    @override
    def unit(self, rms: Tensor, coordinates: Tensor) -> Tensor:
        return rms

    @override
    def clip(self, x: Tensor, radius: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, radius), -radius)

    @override
    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()


class L2(Norm):
    """The Euclidean length."""

    @override
    def size(self, x: Tensor) -> Tensor:
        # Squares of gradients under- and overflow long before the gradients do.
        largest = x.abs().amax(self.dims, keepdim=True)
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
        return largest * (x / largest).square().sum(self.dims, keepdim=True).sqrt()

    @override
    def unit(self, rms: Tensor, coordinates: Tensor) -> Tensor:
        return rms * coordinates.sqrt()

    @override
    def clip(self, x: Tensor, radius: Tensor) -> Tensor:
        size = self.size(x)
        inside = size <= radius
        return torch.where(
            inside, x, x * (radius / torch.where(inside, torch.ones_like(size), size))
        )

    @override
    def steepest(self, gradient: Tensor) -> Tensor:
        return self.normalize(gradient)


def root_mean_square(embeddings: Tensor, keep: Tensor) -> Tensor:
    """The size of a coordinate of each sentence's embeddings: what relative radii multiply.

    Args:
        embeddings: ``B x T x D``.
        keep: 1 on tokens, 0 on padding, ``B x T x 1``, in the type to compute in.

    Returns:
        ``B x 1 x 1``.
    """
    numbers = keep.sum((1, 2), keepdim=True).clamp_min(1) * embeddings.shape[-1]
    squares = (embeddings.to(keep.dtype) * keep).square().sum((1, 2), keepdim=True)
    return (squares / numbers).sqrt()


def as_factor(mask: Tensor | None, like: Tensor) -> Tensor:
    """A mask as 0 and 1, ``(B, T, 1)``, in the type that perturbations are computed in."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if mask is None:
        return torch.ones(*like.shape[:2], 1, dtype=dtype, device=like.device)
    return mask.unsqueeze(-1).to(dtype)


def check_shapes(embeddings: Tensor, mask: Tensor | None) -> None:
    """Make sure that embeddings are ``(B, T, D)`` numbers, and the mask ``(B, T)``.

    Raises:
        UsageError: they are not.
    """
    if embeddings.dim() != 3 or not embeddings.is_floating_point():
        raise UsageError(
            f"embeddings have shape {tuple(embeddings.shape)} and type {embeddings.dtype}: "
            "they must be floating-point numbers of shape (batch, tokens, width)"
        )
    if mask is not None and mask.shape != embeddings.shape[:2]:
        raise UsageError(
            f"mask has shape {tuple(mask.shape)}: it must be {tuple(embeddings.shape[:2])}, "
            "the batch and tokens of the embeddings"
        )


NORMS: dict[str, type[Norm]] = {"linf": LInf, "l2": L2}


def get_norm(name: str, scope: str) -> Norm:
    """Build a norm by name.

    Raises:
        UsageError: the name is not a key of :data:`NORMS`, or the scope not one of :data:`SCOPES`.
    """
    require_choice("norm", name, NORMS)
    return NORMS[name](scope)
