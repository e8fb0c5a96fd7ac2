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

from alum_fairseq.adversarial.divergences import Divergence, get_divergence, widen
from alum_fairseq.adversarial.norms import RESCALE_FLOOR, Norm, get_norm, root_mean_square
from alum_fairseq.errors import UsageError

Predict = Callable[[Tensor], Tensor]

ASCENTS = ("power", "sampled-label", "true-label", "random")
EPSILON_MODES = ("absolute", "relative")
GRADIENTS = ("raw", "normalized", "steepest")
PROJECTIONS = ("clip", "rescale")

# The random start where none was asked for, in multiples of the embeddings' root mean square, and
# the least that survives rounding: so many units of it, at a number of about that size.
NOISE_STD = 0.01
SURVIVING_ROUNDINGS = 4


@dataclass(frozen=True)
class Split:
    """A model cut in two: ``predict(embeddings) == upper(lower(embeddings))``.

    Attributes:
        lower: from embeddings ``(B, T, D)`` to hidden states, the shape is up to it.
        upper: from hidden states to logits.
    """

    lower: Callable[[Tensor], Tensor]
    upper: Predict


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

    The first gradient can be had for less, and then starts from :math:`\delta_0 = 0`: that of the
    log-likelihood of a label at the unperturbed input, where the graph of the clean pass is at
    hand. For labels drawn from the prediction itself its outer product is on average the Fisher
    matrix, whose leading directions are what the ascent on the divergence looks for.

    Attributes:
        ascent: ``"power"``: ascend the divergence from a random start. ``"sampled-label"``: the
            first gradient is that of the log-likelihood of labels drawn from the prediction
            (towards them). ``"true-label"``: it is that of the task's loss (away from the labels).
            ``"random"``: no gradient at all: a random direction, on the surface of the ball.
        steps: how many ascent steps (K); 0 leaves the projected noise. None counts for "random".
        epsilon: radius of the ball that the perturbation stays in.
        epsilon_mode: ``"absolute"``: ``epsilon``, ``step_size`` and ``noise_std`` are in the units
            of the embeddings. ``"relative"``: they are multiples of the root mean square of the
            sentence's embeddings, a coordinate (for the norm L2, times the root of the number of
            coordinates), so that one value serves models of any scale.
        step_size: length of a step (eta): of a normalised gradient its norm, of a raw one a factor.
        noise_std: standard deviation of the random start (sigma) of the ascent "power". None: 0.01
            of the root mean square of the sentence's embeddings, more where that would vanish in
            the rounding of the type that the model computes in.
        norm: ``"linf"`` or ``"l2"``.
        norm_scope: ``"token"``: each token's vector has its own ball; ``"sentence"``: one ball for
            all of a sentence.
        gradient: ``"raw"``; ``"normalized"``: divided by its own norm before the step;
            ``"steepest"``: the step of that norm along which a linear function rises most (for
            "linf" the gradient's signs; for "l2" the same as normalized).
        projection: ``"clip"``: to the nearest point of the ball; ``"rescale"``: to its surface,
            along the same direction (which also lengthens what is shorter).
        divergence: a key of :data:`alum_fairseq.adversarial.divergences.DIVERGENCES`.

    Raises:
        UsageError: a value is out of its range or not one of its choices.
    """

    ascent: str = "power"
    steps: int = 1
    epsilon: float = 0.03
    epsilon_mode: str = "relative"
    step_size: float = 1.0
    noise_std: float | None = None
    norm: str = "l2"
    norm_scope: str = "sentence"
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
            self.noise_std is None or (_is_number(self.noise_std) and self.noise_std >= 0),
            "noise_std",
            self.noise_std,
            "a finite number, 0 or more",
        )
        if self.noise_std == 0 and self.steps > 0 and self.ascent == "power":
            # At delta = 0 every divergence has its minimum, hence gradient zero.
            raise UsageError(
                "noise_std is 0: it must be above 0 when steps is, since the divergence has "
                "gradient zero at an unperturbed input and the ascent could not leave it"
            )
        for name, choices in (
            ("ascent", ASCENTS),
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

    @property
    def needs_clean_graph(self) -> bool:
        """Whether a graph of the clean pass saves the ascent a pass of its own."""
        return self.ascent in ("sampled-label", "true-label") and self.steps > 0

    def perturb(
        self,
        predict: Predict | Split,
        embeddings: Tensor,
        clean_logits: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        labels: Tensor | None = None,
        hidden: Tensor | None = None,
        keep_graph: bool = True,
    ) -> Tensor:
        """Find an adversarial perturbation (Algorithm 1, lines 4 to 8).

        Args:
            predict: from embeddings ``(B, T, D)`` to logits. Called ``steps`` times, or once less
                where the clean pass serves for the first. The gradient is taken with respect to the
                embeddings alone; parameters get none. Of a :class:`Split` model the steps after
                the first run only the lower part, upwards of which the gradient is kept from the
                first step (YOPO: Zhang et al. 2019, arXiv 1905.00877).
            embeddings: ``(B, T, D)``, of any floating type.
            clean_logits: what ``predict`` gives for ``embeddings``; the shape is up to it. Where
                the two are joined by a graph, the ascents along a label need no pass of their own.
            mask: ``(B, T)``, true on tokens that may be perturbed (not padding). All by default.
            weights: one for each prediction, multiplied with its divergence; ones by default.
            generator: source of random numbers; torch's default generator if not given.
            labels: the true ones, as :meth:`Divergence.label_gradient` takes them; for the ascent
                "true-label" alone.
            hidden: of a :class:`Split` model in the graph of ``clean_logits``, what ``lower`` gave
                for ``embeddings``; if it is not given, that graph is not made use of.
            keep_graph: whether that graph is still there afterwards. If not, what it holds is let
                go of before the second step.

        Returns:
            The perturbation, ``(B, T, D)``, float32 (float64 for float64 embeddings), detached,
            zero where the mask is false. It is non-finite where the model's gradient was.

        Raises:
            UsageError: the shapes do not fit, ``predict`` does not depend on the embeddings, or
                labels are missing.
        """
        _check_shapes(embeddings, mask)
        if self.ascent == "true-label" and self.steps > 0 and labels is None:
            raise UsageError("the ascent 'true-label' needs labels, and was given none")
        clean = _Clean(embeddings, clean_logits, hidden, isinstance(predict, Split))
        embeddings = embeddings.detach()
        keep = _keep(embeddings, mask)
        scale, unit = self._units(embeddings, keep)
        if self.ascent == "random":
            noise = _normal_like(keep.expand_as(embeddings), generator) * keep * unit
            return self.ball.rescale(noise, self.epsilon * unit, RESCALE_FLOOR * unit)
        along_label = self.needs_clean_graph
        delta = keep.new_zeros(()).expand(embeddings.shape)
        if not along_label:
            delta = self._start(embeddings, scale, keep, generator) * keep
        if self.steps == 0:
            return self._project(delta, unit)
        pulled = None
        for _ in range(self.steps):
            if pulled is not None and isinstance(predict, Split):
                gradient = pulled.again(predict.lower, embeddings, delta)
            elif pulled is None and along_label:
                pulled = self._along_label(
                    predict, clean, weights, labels, generator, keep_graph=keep_graph
                )
                gradient = pulled.gradient
            else:
                pulled = self._along_divergence(predict, clean, delta, weights)
                gradient = pulled.gradient
            if self.gradient == "raw":
                gradient = gradient / pulled.boost
            # Not a product with the mask: what is not a number in padding's gradient stays out.
            gradient = gradient.where(keep.bool(), 0.0)
            if self.gradient == "normalized":
                gradient = self.ball.normalize(gradient)
            elif self.gradient == "steepest":
                gradient = self.ball.steepest(gradient)
            delta = self._project(delta + self.step_size * unit * gradient, unit)
        return delta

    def start_std(self, embeddings: Tensor) -> float:
        """The standard deviation of the random start, in the units of :attr:`noise_std`.

        Where that is None: in multiples of the embeddings' root mean square.
        """
        if self.noise_std is not None:
            return self.noise_std
        return max(NOISE_STD, SURVIVING_ROUNDINGS * torch.finfo(computed_in(embeddings)).eps)

    def survives_rounding(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Whether the random start is above a unit of rounding where it matters; a scalar, bool.

        That unit is the one of the type that the model computes in, at a number of the size of the
        embeddings' root mean square. What is smaller is rounded away before the model sees it.
        """
        keep = _keep(embeddings, mask)
        rms = root_mean_square(embeddings.detach(), keep)
        relative = self.noise_std is None or self.epsilon_mode == "relative"
        std = self.start_std(embeddings) * (rms if relative else torch.ones_like(rms))
        return (std >= torch.finfo(computed_in(embeddings)).eps * rms).all()

    def _start(
        self, embeddings: Tensor, scale: Tensor, keep: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        if self.noise_std is None:
            scale = root_mean_square(embeddings, keep)
        return (
            scale * self.start_std(embeddings) * _normal_like(keep.expand_as(embeddings), generator)
        )

    def random_like(
        self,
        delta: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A Gaussian direction with the Euclidean length that ``delta`` has, vector by vector.

        Euclidean whatever the ball's norm, so that noise of every kind has gain 1: random signs are
        some three times as long as a Gaussian direction of the same infinity norm.

        Args:
            delta: ``(B, T, D)``, as :meth:`perturb` returns it.
            mask: ``(B, T)``, the one that :meth:`perturb` was given.
            generator: source of the direction; torch's default generator if not given.

        Returns:
            ``(B, T, D)``. What ``D(adversarial) / D(this)`` is called the *gain*.
        """
        keep = _keep(delta, mask)
        length = get_norm("l2", self.norm_scope)
        return length.normalize(_normal_like(delta, generator) * keep) * length.size(delta)

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

    def _along_divergence(
        self, predict: Predict | Split, clean: _Clean, delta: Tensor, weights: Tensor | None
    ) -> _Pulled:
        """The gradient of the divergence with respect to ``delta``."""
        embeddings = clean.embeddings.detach()
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            logits, hidden = _predict(predict, (embeddings + delta).to(embeddings.dtype))
            upstream = self.measure.gradient(logits, clean.logits.detach(), weights)
        return _pull_back(upstream, logits, delta, hidden)

    def _along_label(
        self,
        predict: Predict | Split,
        clean: _Clean,
        weights: Tensor | None,
        labels: Tensor | None,
        generator: torch.Generator | None,
        keep_graph: bool,
    ) -> _Pulled:
        """The gradient of a label's log-likelihood with respect to the embeddings."""
        embeddings, logits, hidden = clean.embeddings, clean.logits, clean.hidden
        if not clean.differentiable:
            with torch.enable_grad():
                embeddings = embeddings.detach().requires_grad_()
                logits, hidden = _predict(predict, embeddings)
        if self.ascent == "sampled-label":
            labels = self.measure.sample(logits, generator)
            upstream = self.measure.label_gradient(logits, labels, weights).neg_()
        else:
            upstream = self.measure.label_gradient(logits, labels, weights)
        keep_graph = keep_graph and clean.differentiable
        return _pull_back(upstream, logits, embeddings, hidden, retain_graph=keep_graph)


@dataclass(frozen=True)
class _Clean:
    """The unperturbed input: what the model makes of it, and whether a graph joins the two."""

    embeddings: Tensor
    logits: Tensor
    hidden: Tensor | None
    split: bool

    @property
    def differentiable(self) -> bool:
        joined = self.embeddings.requires_grad and self.logits.requires_grad
        return joined and (self.hidden is not None or not self.split)


@dataclass(frozen=True)
class _Pulled:
    """A gradient, brought down from the logits.

    Attributes:
        gradient: with respect to the perturbation, times ``boost``; at least float32.
        adjoint: of a split model, with respect to the hidden states, times ``boost``.
        boost: the power of two that all is multiplied with, a scalar.
    """

    gradient: Tensor
    adjoint: Tensor | None
    boost: Tensor

    def again(self, lower: Callable[[Tensor], Tensor], embeddings: Tensor, delta: Tensor) -> Tensor:
        """The gradient at ``delta``, had what comes after ``lower`` the gradient that it had."""
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            hidden = lower((embeddings + delta).to(embeddings.dtype))
        (gradient,) = torch.autograd.grad(hidden, delta, self.adjoint.to(hidden.dtype))
        return gradient


def _predict(predict: Predict | Split, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits, and the hidden states of a model that is split."""
    if not isinstance(predict, Split):
        return predict(embeddings), None
    hidden = predict.lower(embeddings)
    return predict.upper(hidden), hidden


def _pull_back(
    upstream: Tensor,
    logits: Tensor,
    inputs: Tensor,
    hidden: Tensor | None,
    retain_graph: bool = False,
) -> _Pulled:
    # A divergence of 1e-9 has gradients that float16 cannot hold. They are brought to
    # about 1 by a power of two, which is exact, before they enter the model's graph. What is
    # returned has it still, so that nothing underflows later; only a raw gradient's length matters.
    peak = torch.stack(upstream.aminmax()).abs().amax() if upstream.numel() else upstream.sum()
    boost = torch.exp2(-torch.floor(torch.log2(peak.clamp(1e-30, 1e30))))
    wanted = [inputs] if hidden is None else [inputs, hidden]
    try:
        found = torch.autograd.grad(
            logits, wanted, upstream.mul_(boost).to(logits.dtype), retain_graph=retain_graph
        )
    except RuntimeError as error:
        if "used in the graph" in str(error) or "does not require grad" in str(error):
            raise UsageError(
                "predict() returned logits that do not depend on the embeddings it was given"
            ) from None
        raise
    return _Pulled(widen(found[0]), found[1] if len(found) > 1 else None, boost)


def computed_in(embeddings: Tensor) -> torch.dtype:
    """The type that a model's matrix products are computed in: autocast's, or the embeddings'."""
    device = embeddings.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return embeddings.dtype


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
