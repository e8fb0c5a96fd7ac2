"""The inner maximisation of ALUM: find the perturbation that changes the prediction most.

Nothing here knows of fairseq. A model is a function ``predict(embeddings) -> logits``.

Reference: Liu et al. 2020, "Adversarial Training for Large Neural Language Models"
(arXiv 2004.08994), Algorithm 1, lines 4 to 8; the ascent is the power iteration of virtual
adversarial training (Miyato et al. 2018, arXiv 1704.03976).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from alum_fairseq.divergences import Divergence, get_divergence, widen
from alum_fairseq.errors import UsageError
from alum_fairseq.norms import RESCALE_FLOOR, Norm, get_norm, root_mean_square

Predict = Callable[[Tensor], Tensor]

EPSILON_MODES = ("absolute", "relative")
GRADIENTS = ("raw", "normalized")
PROJECTIONS = ("clip", "rescale")


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise UsageError(f"{name} is {value!r}: it must be {right}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Adversary:
    r"""One step or several of projected gradient ascent on the divergence from a prediction.

    .. math::
        \delta_0 &\sim \mathcal N(0, \sigma^2) \\
        g &= \nabla_\delta D(f(e + \delta) \,\|\, sg\, c) \\
        \delta &\leftarrow \mathrm{Project}_\epsilon(\delta + \eta\, g)
        \quad\text{(steps times)}

    Attributes:
        steps: how many ascent steps (K); 0 leaves the projected noise.
        epsilon: radius of the ball that the perturbation stays in.
        epsilon_mode: ``"absolute"``: ``epsilon``, ``step_size`` and ``noise_std`` are in the units
            of the embeddings. ``"relative"``: they are multiples of the root mean square of the
            sentence's embeddings, a coordinate (for the norm L2, times the root of the number of
            coordinates), so that one value serves models of any scale.
        step_size: length of a step (eta): of a normalised gradient its norm, of a raw one a factor.
        noise_std: standard deviation of the random start (sigma).
        norm: ``"linf"`` or ``"l2"``.
        norm_scope: ``"token"``: each token's vector has its own ball; ``"sentence"``: one ball for
            all of a sentence.
        gradient: ``"raw"``, or ``"normalized"``: divided by its own norm before the step.
        projection: ``"clip"``: to the nearest point of the ball; ``"rescale"``: to its surface,
            along the same direction (which also lengthens what is shorter).
        divergence: a key of :data:`alum_fairseq.divergences.DIVERGENCES`.

    Raises:
        UsageError: a value is out of its range or not one of its choices.
    """

    steps: int = 1
    epsilon: float = 0.1
    epsilon_mode: str = "relative"
    step_size: float = 0.1
    noise_std: float = 0.01
    norm: str = "linf"
    norm_scope: str = "token"
    gradient: str = "normalized"
    projection: str = "rescale"
    divergence: str = "kl"

    def __post_init__(self) -> None:
        _require(
            isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 0,
            "steps",
            self.steps,
            "a whole number, 0 or more",
        )
        for name in ("epsilon", "step_size"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, name, value, "a finite number above 0")
        _require(
            _is_number(self.noise_std) and self.noise_std >= 0,
            "noise_std",
            self.noise_std,
            "a finite number, 0 or more",
        )
        if self.noise_std == 0 and self.steps > 0:
            # At delta = 0 every divergence has its minimum, hence gradient zero.
            raise UsageError(
                "noise_std is 0: it must be above 0 when steps is, since the divergence has "
                "gradient zero at an unperturbed input and the ascent could not leave it"
            )
        for name, choices in (
            ("epsilon_mode", EPSILON_MODES),
            ("gradient", GRADIENTS),
            ("projection", PROJECTIONS),
        ):
            value = getattr(self, name)
            _require(value in choices, name, value, f"one of {', '.join(choices)}")
        get_norm(self.norm, self.norm_scope)
        get_divergence(self.divergence)

    @cached_property
    def ball(self) -> Norm:
        """The norm object of this adversary."""
        return get_norm(self.norm, self.norm_scope)

    @cached_property
    def measure(self) -> Divergence:
        """The divergence object of this adversary."""
        return get_divergence(self.divergence)

    def perturb(
        self,
        predict: Predict,
        embeddings: Tensor,
        clean_logits: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Find an adversarial perturbation (Algorithm 1, lines 4 to 8).

        Args:
            predict: from embeddings ``(B, T, D)`` to logits. Called ``steps`` times. The gradient
                is taken with respect to the embeddings alone; parameters get none.
            embeddings: ``(B, T, D)``, of any floating type.
            clean_logits: what ``predict`` gives for ``embeddings``; the shape is up to it.
            mask: ``(B, T)``, true on tokens that may be perturbed (not padding). All by default.
            weights: one for each prediction, multiplied with its divergence; ones by default.
            generator: source of the random start; torch's default generator if not given.

        Returns:
            The perturbation, ``(B, T, D)``, float32 (float64 for float64 embeddings), detached,
            zero where the mask is false. It is non-finite where the model's gradient was.

        Raises:
            UsageError: the shapes do not fit, or ``predict`` does not depend on the embeddings.
        """
        _check_shapes(embeddings, mask)
        embeddings, clean_logits = embeddings.detach(), clean_logits.detach()
        keep = _keep(embeddings, mask)
        scale, unit = self._units(embeddings, keep)
        delta = scale * self.noise_std * _normal_like(keep.expand_as(embeddings), generator)
        delta = delta * keep
        if self.steps == 0:
            delta = self._project(delta, unit)
        for _ in range(self.steps):
            gradient = self._gradient(predict, embeddings, delta, clean_logits, weights)
            # Not a product with the mask: what is not a number in padding's gradient stays out.
            gradient = gradient.where(keep.bool(), 0.0)
            if self.gradient == "normalized":
                gradient = self.ball.normalize(gradient)
            delta = self._project(delta + self.step_size * unit * gradient, unit)
        return delta

    def random_like(
        self,
        delta: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A Gaussian direction with the size that ``delta`` has, vector by vector.

        Args:
            delta: ``(B, T, D)``, as :meth:`perturb` returns it.
            mask: ``(B, T)``, the one that :meth:`perturb` was given.
            generator: source of the direction; torch's default generator if not given.

        Returns:
            ``(B, T, D)``. What ``D(adversarial) / D(this)`` is called the *gain*.
        """
        keep = _keep(delta, mask)
        direction = self.ball.normalize(_normal_like(delta, generator) * keep)
        return direction * self.ball.size(delta)

    def mean_size(self, delta: Tensor, mask: Tensor | None = None) -> Tensor:
        """The norm of ``delta``, averaged over its vectors (of padding, none): a scalar.

        In the units of the embeddings, whatever ``epsilon_mode`` is.
        """
        size = self.ball.size(delta).squeeze(-1)
        counted = _keep(delta, mask).squeeze(-1)
        if self.norm_scope == "sentence":
            counted = counted.amax(-1, keepdim=True)
        counted = counted.expand_as(size)
        return (size * counted).sum() / counted.sum().clamp_min(1)

    def _units(self, embeddings: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """What one unit of noise and one unit of radius are, each ``(B, 1, 1)``."""
        one = keep.new_ones(embeddings.shape[0], 1, 1)
        if self.epsilon_mode == "absolute":
            return one, one
        width = embeddings.shape[-1]
        tokens = keep.sum((1, 2), keepdim=True).clamp_min(1)
        rms = root_mean_square(embeddings, keep)
        coordinates = tokens * width if self.norm_scope == "sentence" else one * width
        return rms, self.ball.unit(rms, coordinates)

    def _project(self, delta: Tensor, unit: Tensor) -> Tensor:
        if self.projection == "clip":
            return self.ball.clip(delta, self.epsilon * unit)
        return self.ball.rescale(delta, self.epsilon * unit, RESCALE_FLOOR * unit)

    def _gradient(
        self,
        predict: Predict,
        embeddings: Tensor,
        delta: Tensor,
        clean_logits: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        """The gradient of the divergence with respect to ``delta``."""
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            logits = predict((embeddings + delta).to(embeddings.dtype))
            leaf = widen(logits.detach()).requires_grad_()
            (upstream,) = torch.autograd.grad(self.measure.total(leaf, clean_logits, weights), leaf)
        # A divergence of 1e-9 has gradients that float16 cannot hold. They are brought to
        # about 1 by a power of two, which is exact, before they enter the model's graph.
        peak = upstream.abs().amax() if upstream.numel() else upstream.new_zeros(())
        boost = torch.exp2(-torch.floor(torch.log2(peak.clamp(1e-30, 1e30))))
        try:
            (gradient,) = torch.autograd.grad(logits, delta, (upstream * boost).to(logits.dtype))
        except RuntimeError as error:
            if "used in the graph" in str(error) or "does not require grad" in str(error):
                raise UsageError(
                    "predict() returned logits that do not depend on the embeddings it was given"
                ) from None
            raise
        # In float32, and only where its length matters, so that nothing underflows now.
        return gradient if self.gradient == "normalized" else gradient / boost


def _check_shapes(embeddings: Tensor, mask: Tensor | None) -> None:
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


def _keep(like: Tensor, mask: Tensor | None) -> Tensor:
    """The mask as 0 and 1, ``(B, T, 1)``, in the type that perturbations are computed in."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if mask is None:
        return torch.ones(*like.shape[:2], 1, dtype=dtype, device=like.device)
    return mask.unsqueeze(-1).to(dtype)


def _normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
