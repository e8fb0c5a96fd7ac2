"""Projected gradient attacks on embeddings, and the smallest radius at which one succeeds.

Where :mod:`alum_fairseq.adversarial.adversary` finds a perturbation to train with, in one step,
this looks for one that changes the decision, and gives up late. The attack is that of Madry et al.
2018 (arXiv 1706.06083), steepest ascent, projected to a ball, from several starts, with the steps
of Croce and Hein 2020 (arXiv 2003.01690, Auto-PGD), which find their size themselves. Nothing here
knows of fairseq. A model is a function from the embeddings of some examples to their outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from alum_fairseq.adversarial.norms import Norm, get_norm, root_mean_square
from alum_fairseq.errors import UsageError, require_count

# Takes the embeddings of some of the examples (b x T x D), and the numbers of these examples (b).
Predict = Callable[[Tensor, Tensor], Tensor]
# Takes outputs (b x C; of K predictions an example, b x K x C) and the numbers of their examples
# (b); returns one number for each.
Objective = Callable[[Tensor, Tensor], Tensor]

LOSS, DIVERGENCE, MARGIN, RATIO = "loss", "divergence", "margin", "ratio"
OBJECTIVES = (LOSS, DIVERGENCE, MARGIN, RATIO)

# How many ways of being wrong are compared to find the nearest.
_RIVALS = 9

# The search goes from one radius to this many times it, then to the square of that, ..., until
# it has a radius that suffices and one that does not.
_STRIDE = 1.2
_CURVED = 0.9
# Of a step, the share that is new; the rest goes on as the step before.
_NEW = 0.75
# Of the steps between two checkpoints, the share that must have raised the objective.
_RISING = 0.75
_RANDOM_TRIES = 10
_SEARCH_STEPS = 20
_SEARCH_DRAWS = 10**6  # the first of its random points, which no start has
# The largest radius; where it does not suffice, the model is constant or its gradients mislead.
_CEILING = 100.0


@dataclass(frozen=True)
class Target:
    """Examples under attack.

    Attributes:
        predict: the outputs (``b x C``) for embeddings of some of the examples.
        embeddings: of all of them, ``B x T x D``; each example has one ball, be it a sentence, a
            pair, or a context with all candidates.
        clean: the outputs for these, ``B x C`` or ``B x K x C``.
        mask: true on tokens, false on padding, ``B x T``.
        objectives: what to raise, by name.
        margins: how far outputs are from each way of being wrong (``b x R``), such as each wrong
            class; infinite where there is no such way, negative where they are wrong.
        seeds: one for each example, from which its random starts are drawn.
    """

    predict: Predict
    embeddings: Tensor
    clean: Tensor
    mask: Tensor
    objectives: Mapping[str, Objective]
    margins: Callable[[Tensor, Tensor], Tensor]
    seeds: list[int]

    def margin(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """How far outputs are from being wrong, one number for each example."""
        return self.margins(outputs, rows).amin(1)


@dataclass
class Found:
    """The result of attacks at given radii; one entry for each example.

    Attributes:
        broken: whether the decision was changed.
        delta: by what, ``B x T x D``; zero where it was not.
        outputs: what the model then puts out, like ``clean``; nan where it was not.
        restart: the start that it was found from, the first being 0; -1 where none was.
        flat: whether a gradient was zero or not finite: the attack was blind.
    """

    broken: Tensor
    delta: Tensor
    outputs: Tensor
    restart: Tensor
    flat: Tensor

    @classmethod
    def nothing(cls, target: Target) -> Found:
        """What is found before anything is tried."""
        blank = torch.zeros_like(target.embeddings[:, 0, 0], dtype=torch.bool)
        delta = torch.zeros_like(target.embeddings)
        outputs = torch.full_like(target.clean, math.nan)
        restart = torch.full_like(blank, -1, dtype=torch.long)
        return cls(blank, delta, outputs, restart, blank.clone())

    def take(self, rows: Tensor, other: Found) -> None:
        """Put how another attack broke these examples in the place of what was found before."""
        for name in ("broken", "delta", "outputs", "restart"):
            getattr(self, name)[rows] = getattr(other, name)[rows]


@dataclass(frozen=True)
class Smallest:
    """The smallest radii that were found; one entry for each example.

    Attributes:
        radius: that breaks it; 0: it was wrong already; infinite: none was found.
        lower: the largest radius at which the attack failed.
        found: how it was broken at ``radius``.
        random: whether random perturbations of that size break it, too.
        search: whether a search without gradients breaks it at ``lower``, where they failed.
    """

    radius: Tensor
    lower: Tensor
    found: Found
    random: Tensor
    search: Tensor


@dataclass(frozen=True)
class ProjectedGradient:
    r"""Steepest ascent inside a ball, from several starts, until the decision changes.

    .. math::
        z_{k+1} &= \mathrm{Clip}_r\big(\delta_k + \eta\, d(g_k)\big) \\
        \delta_{k+1} &= \mathrm{Clip}_r\big(\delta_k + 0.75\, (z_{k+1} - \delta_k)
            + 0.25\, (\delta_k - \delta_{k-1})\big)

    where *d* is the steepest direction of unit norm: the sign of the gradient for the infinity
    norm, the gradient divided by its length for L2. The first step goes to *z*. The size of a step
    begins at :math:`\eta = 2r`; see :class:`_Ascent` for when it is halved. Start 0 is the
    unperturbed input where the objective has a gradient there, every other a random point of the
    ball; starts take turns with the objectives. The very first step up the loss is aimed: away from
    the right answer, towards the wrong one that would be nearest if the model were linear (as in
    DeepFool, Moosavi-Dezfooli et al. 2016, arXiv 1511.04599). Where it is, that finds the smallest
    perturbation there is.

    The steps do not depend on how many there will be, nor the starts on the others: with more of
    either, whatever was broken is still broken, from the same start or an earlier one.

    Attributes:
        norm: ``"linf"`` or ``"l2"``. Radii are multiples of the root mean square of the example's
            embeddings per coordinate (for L2, times the root of the number of coordinates).
        steps: how many, at most.
        restarts: how many starts, at most.
        objectives: what is raised, by the starts in turn: ``"loss"`` of the right answer,
            ``"divergence"`` from the clean prediction, ``"margin"`` of the best wrong answer over
            the right one, or its ``"ratio"`` to the spread of the logits (Croce and Hein 2020,
            arXiv 2003.01690, equation 3), which a model cannot make small by its scale.
        patience: an ascent is given up when in so many steps the decision has come no closer.

    Raises:
        UsageError: a value is out of its range or not one of its choices.
    """

    norm: str = "linf"
    steps: int = 10
    restarts: int = 2
    objectives: tuple[str, ...] = (LOSS, DIVERGENCE)
    patience: int = 3

    def __post_init__(self) -> None:
        get_norm(self.norm, "sentence")  # raises
        for name in ("steps", "restarts", "patience"):
            require_count(name, getattr(self, name))
        wrong = [name for name in self.objectives if name not in OBJECTIVES]
        if wrong or not self.objectives:
            raise UsageError(
                f"objectives are {', '.join(self.objectives) or 'none'}: choose from "
                f"{', '.join(OBJECTIVES)}"
            )

    @property
    def ball(self) -> Norm:
        """One ball an example."""
        return get_norm(self.norm, "sentence")

    def attack(
        self,
        target: Target,
        radius: Tensor,
        rows: Tensor | None = None,
        rivals: Tensor | None = None,
    ) -> Found:
        """Try to change the decision about each example within a radius.

        Args:
            target: ``B`` examples.
            radius: relative, one for each example (``B``).
            rows: the numbers of the examples to attack; all by default.
            rivals: for each example the way of being wrong to aim at; the nearest by default.
        """
        unit, found = self.unit(target), Found.nothing(target)
        left = torch.arange(len(radius), device=radius.device) if rows is None else rows
        if rivals is None and LOSS in self.objectives:
            rivals = _nearest(self, target, left)[1]
        for restart in range(self.restarts):
            left = left[~found.broken[left]]
            if not len(left):
                break
            self._ascend(target, radius.view(-1, 1, 1) * unit, left, restart, rivals, found)
        return found

    def smallest(
        self,
        target: Target,
        precision: float = 1.1,
        floor: float = 1e-5,
    ) -> Smallest:
        """The smallest radius at which the attack succeeds, by bisection, for each example.

        It begins a little below where the decision would change if the model were linear: real
        ones are mostly easier to break than that. Which radius is tried next depends on nothing
        but how the attack ended at those before, so that more steps or starts never make it larger.

        Args:
            precision: the search ends when the radius is at most this many times one that failed.
            floor: the smallest radius that is tried; the largest is ``_CEILING``.
        """
        everything = torch.arange(len(target.clean), device=target.clean.device)
        wrong = target.margin(target.clean, everything) < 0
        found = Found.nothing(target)
        found.broken[wrong] = True
        found.outputs[wrong] = target.clean[wrong]
        lower = torch.zeros_like(wrong, dtype=torch.float64)
        upper = torch.where(wrong, 0.0, math.inf).to(lower)
        linear, rivals = _nearest(self, target, everything[~wrong])
        radius = (_CURVED * linear.to(lower)).clamp(floor, _CEILING)
        tries = 0
        while True:
            narrow = upper <= precision * lower * (1 + 1e-12)
            rows = everything[(upper > floor) & (lower < _CEILING) & ~narrow]
            if not len(rows):
                random, search = _random(self, target, upper), _search(self, target, lower)
                return Smallest(upper, lower, found, random, search)
            tried = self.attack(target, radius.to(target.embeddings), rows, rivals)
            succeeded, failed = rows[tried.broken[rows]], rows[~tried.broken[rows]]
            found.take(succeeded, tried)
            found.flat |= tried.flat
            upper[succeeded] = radius[succeeded]
            lower[failed] = radius[failed]
            tries += 1
            out, into = lower * _STRIDE**tries, upper / _STRIDE**tries
            between = (lower * upper).sqrt().where(lower > 0, into)
            radius = torch.where(upper.isinf(), out, between).clamp(floor, _CEILING)

    def unit(self, target: Target) -> Tensor:
        """What the radius 1 is in the units of the embeddings, ``B x 1 x 1``."""
        keep = target.mask.unsqueeze(-1).to(target.embeddings.dtype)
        rms = root_mean_square(target.embeddings, keep)
        return self.ball.unit(rms, keep.sum((1, 2), keepdim=True) * target.embeddings.shape[-1])

    def _ascend(
        self,
        target: Target,
        radius: Tensor,
        rows: Tensor,
        restart: int,
        rivals: Tensor | None,
        found: Found,
    ) -> None:
        """Ascend from one start, and note what breaks on the way."""
        name = self.objectives[restart % len(self.objectives)]
        delta = torch.zeros_like(target.embeddings[rows])
        if restart or name == DIVERGENCE:  # which has its minimum, hence no gradient, at zero
            delta = self.start(target, rows, restart) * radius[rows]
        ascent = _Ascent.at(delta, radius[rows])
        closest = torch.full_like(delta[:, 0, 0], math.inf)
        since = torch.zeros_like(rows)  # it was reached, in steps

        def aimed(outputs: Tensor, rows: Tensor) -> Tensor:
            return -target.margins(outputs, rows).gather(1, rivals[rows].unsqueeze(1))[:, 0]

        for step in range(self.steps + 1):
            first = name == LOSS and restart < len(self.objectives) and not step
            objective = aimed if first else target.objectives[name]
            gradient, outputs = _gradient(target, objective, rows, delta, step == self.steps)
            margin = target.margin(outputs, rows)
            broken = margin < 0
            hit = rows[broken]
            found.broken[hit] = True
            found.delta[hit] = delta[broken]
            found.outputs[hit] = outputs[broken]
            found.restart[hit] = restart
            since = torch.where(margin < closest, 0, since + 1)
            closest = torch.minimum(margin, closest)
            on = ~broken & (since < self.patience)
            if step == self.steps or not on.any():
                return
            value = target.objectives[name](outputs.double(), rows)
            ascent = ascent.of(on)
            rows, delta, gradient, value, closest, since = (
                each[on] for each in (rows, delta, gradient, value, closest, since)
            )
            blind = ~gradient.isfinite().all(-1).all(-1) | ~gradient.any(-1).any(-1)
            found.flat[rows[blind]] = True
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0) * target.mask[rows].unsqueeze(-1)
            delta = ascent.next(self.ball, step, delta, gradient, value)

    def start(self, target: Target, rows: Tensor, draw: int) -> Tensor:
        """A random point of the unit ball for each example, ``b x T x D``, zero on padding.

        Uniform in the ball of the infinity norm. In that of L2, of so many dimensions, practically
        all of the volume lies at the surface, and so do the points.
        """
        points = torch.zeros_like(target.embeddings[rows])
        uniform = self.norm == "linf"
        for point, row in zip(points, rows.tolist(), strict=True):
            tokens = target.mask[row]
            generator = torch.Generator().manual_seed(target.seeds[row] + draw)
            size = (int(tokens.sum()), points.shape[-1])
            drawn = (torch.rand if uniform else torch.randn)(size, generator=generator)
            point[tokens] = (drawn * 2 - 1 if uniform else drawn).to(points)
        return points if uniform else self.ball.normalize(points)


@dataclass
class _Ascent:
    """What the steps of Auto-PGD depend on (Croce and Hein 2020, algorithm 1); one row an example.

    At a checkpoint the step is halved, and the ascent goes on from rest at its highest point, where
    fewer than 75% of the steps since the last checkpoint were upwards; or where neither the highest
    value has changed since, nor the step at that checkpoint. Checkpoints are where the paper has
    them for ten steps, after 3 and from 5 on after each, however many steps there will be.

    Attributes:
        radius: of the ball, ``b x 1 x 1``; ``length`` of a step likewise.
        before: the last point but one, ``b x T x D``.
        best: the highest point, and ``uphill`` the gradient there, ``b x T x D``.
        highest: the value there, ``b``; ``checked`` at the last checkpoint.
        value: at the last point, ``b``.
        rises: the steps upwards since the last checkpoint, ``b``.
        halved: whether the step was halved there, ``b``.
    """

    radius: Tensor
    length: Tensor
    before: Tensor
    best: Tensor
    uphill: Tensor
    highest: Tensor
    checked: Tensor
    value: Tensor
    rises: Tensor
    halved: Tensor

    @classmethod
    def at(cls, start: Tensor, radius: Tensor) -> _Ascent:
        """Before the first step."""
        low = torch.full_like(radius[:, 0, 0], -math.inf, dtype=torch.float64)
        no = torch.zeros_like(low, dtype=torch.bool)
        points = start, start, torch.zeros_like(start)
        return cls(radius, 2 * radius, *points, low, low, -low, no.long(), no)

    def of(self, rows: Tensor) -> _Ascent:
        """That of some of the examples."""
        return _Ascent(*(getattr(self, field.name)[rows] for field in fields(self)))

    def next(self, ball: Norm, step: int, delta: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        """The point after this one, which is that of a step counted from 0."""
        higher = value > self.highest
        self.highest = value.where(higher, self.highest)
        self.best = delta.where(_over(higher), self.best)
        self.uphill = gradient.where(_over(higher), self.uphill)
        self.rises = self.rises + (value > self.value)
        self.value = value
        if step == 3 or step >= 5:
            since = {3: 3, 5: 2}.get(step, 1)
            poor = self.rises < _RISING * since
            poor |= ~self.halved & (self.highest <= self.checked)
            self.halved, self.checked, self.rises = poor, self.highest, 0 * self.rises
            self.length = (self.length / 2).where(_over(poor), self.length)
            delta, gradient, self.before = (
                there.where(_over(poor), here)
                for there, here in (
                    (self.best, delta),
                    (self.uphill, gradient),
                    (self.best, self.before),
                )
            )
        after = ball.clip(delta + self.length * ball.steepest(gradient), self.radius)
        if step:
            moved = _NEW * (after - delta) + (1 - _NEW) * (delta - self.before)
            after = ball.clip(delta + moved, self.radius)
        self.before = delta
        return after


def _over(examples: Tensor) -> Tensor:
    """One entry an example as ``b x 1 x 1``."""
    return examples.view(-1, 1, 1)


def _nearest(attack: ProjectedGradient, target: Target, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest radius if the model were linear, and which way of being wrong that leads to.

    One of each an example (``B``); 1 and 0 for those that are not in ``rows``.
    """
    radius = torch.ones_like(target.embeddings[:, 0, 0])
    rivals = torch.zeros_like(radius, dtype=torch.long)
    if not len(rows):
        return radius, rivals
    mask, unit = target.mask[rows].unsqueeze(-1), attack.unit(target)[rows, 0, 0]
    with torch.enable_grad():
        delta = torch.zeros_like(target.embeddings[rows]).requires_grad_()
        margins = target.margins(target.predict(target.embeddings[rows] + delta, rows), rows)
        nearest = torch.full_like(margins[:, 0], math.inf).detach()
        closest, places = margins.topk(min(_RIVALS, margins.shape[1]), largest=False)
        for margin, place in zip(closest.unbind(1), places.unbind(1), strict=True):
            (gradient,) = torch.autograd.grad(margin.sum(), delta, retain_graph=True)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0) * mask
            rise = (gradient * attack.ball.steepest(gradient)).sum((1, 2)) * unit
            distance = margin.detach() / rise
            nearer = distance < nearest
            rivals[rows[nearer]] = place[nearer]
            nearest = distance.where(nearer, nearest)
    radius[rows] = nearest.nan_to_num(1.0, 1.0, 1.0).to(radius)
    return radius, rivals


@torch.no_grad()
def _random(attack: ProjectedGradient, target: Target, upper: Tensor) -> Tensor:
    """Whether one of several random perturbations, as large as the attack's, breaks it."""
    rows = torch.nonzero((upper > 0) & upper.isfinite()).flatten()
    broken = torch.zeros_like(upper, dtype=torch.bool)
    size = upper.to(target.embeddings).view(-1, 1, 1) * attack.unit(target)
    for draw in range(_RANDOM_TRIES):
        rows = rows[~broken[rows]]
        if len(rows):
            direction = attack.ball.steepest(attack.start(target, rows, -1 - draw))
            outputs = target.predict(target.embeddings[rows] + size[rows] * direction, rows)
            broken[rows] = target.margin(outputs, rows) < 0
    return broken


@torch.no_grad()
def _search(attack: ProjectedGradient, target: Target, radius: Tensor) -> Tensor:
    """Whether random search breaks examples at a radius, 0 for those that are left alone.

    As in the square attack (Andriushchenko et al. 2020, arXiv 1912.00049): what is random is drawn
    anew on a few of the tokens, fewer and fewer, and kept where that brings the decision closer.
    """
    rows = torch.nonzero(radius > 0).flatten()
    broken = torch.zeros_like(radius, dtype=torch.bool)
    size = (radius.to(target.embeddings).view(-1, 1, 1) * attack.unit(target))[rows]
    best = torch.full_like(size[:, 0, 0], math.inf)
    point = torch.zeros_like(target.embeddings[rows])
    for step in range(_SEARCH_STEPS if len(rows) else 0):
        draw = _SEARCH_DRAWS + step
        lengths = attack.start(target, rows, draw).norm(dim=-1)
        many = (target.mask[rows].sum(1, keepdim=True) / (1 + step)).ceil().long()
        least = lengths.sort(descending=True).values.gather(1, many - 1)
        chosen = (lengths >= least).unsqueeze(-1)  # the tokens of so many longest draws
        tried = attack.start(target, rows, draw + _SEARCH_STEPS).where(chosen, point)
        outputs = target.predict(target.embeddings[rows] + size * attack.ball.steepest(tried), rows)
        margin = target.margin(outputs, rows)
        closer = margin < best
        point = tried.where(closer.view(-1, 1, 1), point)
        best = margin.where(closer, best)
    broken[rows] = best < 0
    return broken


def _gradient(
    target: Target, objective: Objective, rows: Tensor, delta: Tensor, last: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the objective with respect to ``delta``, up to a factor, and the outputs."""
    embeddings = target.embeddings[rows]
    if last:
        with torch.no_grad():
            return delta, target.predict(embeddings + delta, rows)
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        outputs = target.predict(embeddings + delta, rows)
        # In float64: a confident softmax has a gradient that float32 rounds to zero, and each
        # example's is brought to 1. Its length is of no interest here.
        leaf = outputs.detach().double().requires_grad_()
        (upstream,) = torch.autograd.grad(objective(leaf, rows).sum(), leaf)
    largest = upstream.abs().amax(tuple(range(1, upstream.dim())), keepdim=True)
    upstream = upstream / largest.where(largest > 0, torch.ones_like(largest))
    (gradient,) = torch.autograd.grad(outputs, delta, upstream.to(outputs.dtype))
    return gradient, outputs.detach()
