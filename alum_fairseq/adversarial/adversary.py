"""The inner maximisation: find the perturbation in a ball that raises an objective most.

Liu et al. 2020, "Adversarial Training for Large Neural Language Models" (arXiv 2004.08994),
Algorithm 1, lines 4 to 8. What is climbed: :mod:`alum_fairseq.adversarial.objectives`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from alum_fairseq.adversarial import norms
from alum_fairseq.adversarial.objectives import Objective, gradient_at
from alum_fairseq.adversarial.precision import default_noise_std
from alum_fairseq.errors import is_number, require, require_choice, require_count

STARTS = ("normal", "uniform", "zero")
EPSILON_MODES = ("absolute", "relative")
GRADIENTS = ("raw", "normalized", "steepest")
PROJECTIONS = ("clip", "rescale", "none")


@dataclass(frozen=True)
class Adversary:
    r"""Projected gradient ascent on an objective :math:`J`.

    .. math::
        \delta_0 &\sim \mathcal N(0, \sigma^2) \\
        g &= \nabla_\delta J(e + \delta) \\
        \delta &\leftarrow \mathrm{Project}_\epsilon(\delta + \eta\, g)
        \quad\text{(steps times)}

    Attributes:
        start: ``"normal"``; ``"uniform"``: in the cube inscribed in the ball of radius
            ``noise_std``; ``"zero"``: for objectives that have a gradient there.
        steps: how many ascent steps (K); 0 leaves the projected start.
        epsilon: radius of the ball that the perturbation stays in.
        epsilon_mode: of ``epsilon``, ``step_size`` and ``noise_std``: ``"absolute"``, or
            ``"relative"``: in multiples of the root mean square of the sentence's embeddings, per
            coordinate (for L2, times the root of their number), to serve models of any scale.
        step_size: length of a step (eta): of a normalised gradient its norm, of a raw one a factor.
            Infinite: the perturbation is the gradient's direction alone, with norm epsilon, as in
            the power iteration of VAT (Miyato et al. 2018, arXiv 1704.03976).
        noise_std: size of the random start (sigma): the standard deviation of a normal one. None:
            0.01 of that root mean square, or more where half precision would round it away.
        norm: a key of :data:`alum_fairseq.adversarial.norms.NORMS`.
        norm_scope: ``"token"``: a ball for each token's vector; ``"sentence"``: one for all.
        gradient: ``"raw"``; ``"normalized"``: divided by its norm; ``"steepest"``: the vector of
            norm 1 along which a linear function rises most (for "linf" the gradient's signs).
        projection: ``"clip"``: to the nearest point of the ball; ``"rescale"``: to its surface,
            which also lengthens what is shorter; ``"none"``.

    Raises:
        UsageError: a value is out of its range or not one of its choices.

    Example::

        objective = DivergenceFromClean(predict, predict(embeddings), get_divergence("kl"))
        delta = Adversary(steps=1, epsilon=0.03).perturb(objective, embeddings, mask)
    """

    start: str = "normal"
    steps: int = 1
    epsilon: float = 0.03
    epsilon_mode: str = "relative"
    step_size: float = 1.0
    noise_std: float | None = None
    norm: str = "l2"
    norm_scope: str = "sentence"
    gradient: str = "normalized"
    projection: str = "rescale"

    def __post_init__(self) -> None:
        epsilon, size, std = self.epsilon, self.step_size, self.noise_std
        require_count("steps", self.steps, least=0)
        finite = is_number(epsilon) and 0 < epsilon < math.inf
        require("epsilon", epsilon, "a finite number above 0", finite)
        require("step_size", size, "a number above 0", is_number(size) and size > 0)
        finite = std is None or (is_number(std) and 0 <= std < math.inf)
        require("noise_std", std, "a finite number, 0 or more", finite)
        require_choice("start", self.start, STARTS)
        require_choice("epsilon_mode", self.epsilon_mode, EPSILON_MODES)
        require_choice("gradient", self.gradient, GRADIENTS)
        require_choice("projection", self.projection, PROJECTIONS)
        norms.get_norm(self.norm, self.norm_scope)

    @cached_property
    def ball(self) -> norms.Norm:
        """The norm object of this adversary."""
        return norms.get_norm(self.norm, self.norm_scope)

    def perturb(
        self,
        objective: Objective,
        embeddings: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        gradient: Tensor | None = None,
    ) -> Tensor:
        """Find an adversarial perturbation (Algorithm 1, lines 4 to 8).

        Args:
            objective: what is climbed; called once a step. The gradient is taken with respect to
                the embeddings alone; parameters get none.
            embeddings: ``(B, T, D)``, of any floating type.
            mask: ``(B, T)``, true on tokens that may be perturbed; all by default.
            generator: source of random numbers; torch's default generator if not given.
            gradient: that at the start, ``(B, T, D)``, where it is known already.

        Returns:
            ``(B, T, D)``, at least float32, detached, zero where the mask is false; not finite
            where the model's gradient was not.

        Raises:
            UsageError: the shapes do not fit, or the objective does not depend on the embeddings.
        """
        ascent, exact = Ascent(self, embeddings, mask), self.gradient == "raw"
        delta = ascent.start(generator)
        for _ in range(self.steps):
            if gradient is None:
                gradient = gradient_at(objective, ascent.embeddings, delta, exact)
            delta, gradient = ascent.step(delta, gradient), None
        return delta


class Ascent:
    """The ball of an adversary around one batch, and a step in it.

    Args:
        adversary: whose steps they are.
        embeddings: ``(B, T, D)``, of any floating type.
        mask: ``(B, T)``, true on tokens that may be perturbed.

    Raises:
        UsageError: the shapes do not fit.
    """

    def __init__(self, adversary: Adversary, embeddings: Tensor, mask: Tensor | None) -> None:
        norms.check_shapes(embeddings, mask)
        self.adversary, self.embeddings = adversary, embeddings.detach()
        self.keep = keep = norms.as_factor(mask, embeddings)
        self._one = one = keep.new_ones(len(embeddings), 1, 1)
        width = one * embeddings.shape[-1]
        tokens = keep.sum((1, 2), keepdim=True).clamp_min(1)
        self._coordinates = tokens * width if adversary.norm_scope == "sentence" else width
        relative = adversary.epsilon_mode == "relative"
        self._unit = adversary.ball.unit(self.rms, self._coordinates) if relative else one

    @cached_property
    def rms(self) -> Tensor:
        """The root mean square of each sentence's embeddings, ``(B, 1, 1)``."""
        return norms.root_mean_square(self.embeddings, self.keep)

    def start(self, generator: torch.Generator | None = None) -> Tensor:
        """The perturbation before the first step, ``(B, T, D)``; without steps, the last one."""
        noise = torch.zeros_like(self.keep.expand_as(self.embeddings))
        if self.adversary.start == "normal":
            noise.normal_(generator=generator)
        elif self.adversary.start == "uniform":
            noise.uniform_(-1, 1, generator=generator)
        delta = self.noise_size() * noise * self.keep
        return delta if self.adversary.steps else self._project(delta)

    def noise_size(self) -> Tensor:
        """The size of the random start per coordinate, ``(B, 1, 1)``, in the embeddings' units."""
        adversary, std = self.adversary, self.adversary.noise_std
        if std is None:
            return self.rms * default_noise_std(self.embeddings)
        if adversary.epsilon_mode == "relative":
            return self.rms * std
        if adversary.start == "normal":
            return self._one * std
        return std / adversary.ball.unit(self._one, self._coordinates)

    def step(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """One step along a gradient, and back into the ball; all ``(B, T, D)``."""
        adversary = self.adversary
        # Not a product with the mask: what is not a number in padding's gradient stays out.
        gradient = gradient.where(self.keep.bool(), 0.0)
        if adversary.gradient == "normalized":
            gradient = adversary.ball.normalize(gradient)
        elif adversary.gradient == "steepest":
            gradient = adversary.ball.steepest(gradient)
        if adversary.step_size == math.inf:
            return adversary.epsilon * self._unit * gradient
        return self._project(delta + adversary.step_size * self._unit * gradient)

    def _project(self, delta: Tensor) -> Tensor:
        adversary, radius = self.adversary, self.adversary.epsilon * self._unit
        if adversary.projection == "clip":
            return adversary.ball.clip(delta, radius)
        if adversary.projection == "rescale":
            return adversary.ball.rescale(delta, radius, norms.RESCALE_FLOOR * self._unit)
        return delta
