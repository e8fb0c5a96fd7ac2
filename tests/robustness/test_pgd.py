"""The attack on embeddings: against radii that are known, brute force and foolbox's attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models.roberta import RobertaModel
from support.small_models import make_dictionary, make_model, make_task
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from alum_fairseq import UsageError
from alum_fairseq.data.layout import Layout
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.predict import Predictor
from alum_fairseq.problems import Classification, MultipleChoice, Regression
from alum_fairseq.robustness.attacks.pgd import (
    DIVERGENCE,
    LOSS,
    MARGIN,
    RATIO,
    Found,
    ProjectedGradient,
    Smallest,
    Target,
)
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example

NORMS = ("linf", "l2")
# From embeddings (b x T x D) to outputs (b x C).
Model = Callable[[Tensor], Tensor]

both_norms = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Small models in the place of a RoBERTa.


def target_of(model: Model, e: Tensor, mask: Tensor | None = None, **changed: Any) -> Target:
    """Examples that a classifier gets right; padding does not reach it."""
    mask = torch.ones(e.shape[:2], dtype=torch.bool) if mask is None else mask

    def predict(embeddings: Tensor, rows: Tensor) -> Tensor:
        return model(embeddings * mask[rows].unsqueeze(-1))

    clean = model(e * mask.unsqueeze(-1))
    right = clean.argmax(1)

    def margins(outputs: Tensor, rows: Tensor) -> Tensor:
        chosen = right[rows].unsqueeze(1)
        return outputs.gather(1, chosen) - outputs.scatter(1, chosen, -math.inf)

    def loss(outputs: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(outputs, right[rows], reduction="none")

    def divergence(outputs: Tensor, rows: Tensor) -> Tensor:
        p, q = clean[rows].log_softmax(1), outputs.log_softmax(1)
        return (p.exp() * (p - q)).sum(1)

    def margin(outputs: Tensor, rows: Tensor) -> Tensor:
        return -margins(outputs, rows).amin(1)

    def ratio(outputs: Tensor, rows: Tensor) -> Tensor:
        best = outputs.topk(outputs.shape[1]).values
        return margin(outputs, rows) / (best[:, 0] - best[:, min(2, best.shape[1] - 1)])

    objectives = {LOSS: loss, DIVERGENCE: divergence, MARGIN: margin, RATIO: ratio}
    seeds = [1000 * i for i in range(len(e))]
    return replace(Target(predict, e, clean, mask, objectives, margins, seeds), **changed)


def lengths_to_mask(lengths: Tensor, tokens: int) -> Tensor:
    return torch.arange(tokens) < lengths.unsqueeze(1)


def draw(seed: int, examples: int = 24, tokens: int = 4, width: int = 5) -> tuple[Tensor, Tensor]:
    """Embeddings of several sizes, with something on the padding, too; and the mask."""
    torch.manual_seed(seed)
    e = torch.randn(examples, tokens, width) * torch.rand(examples, 1, 1).add(0.1)
    return e, lengths_to_mask(torch.randint(1, tokens + 1, (examples,)), tokens)


def network(seed: int, tokens: int = 4, width: int = 5, classes: int = 3) -> Model:
    """Smooth, not linear, and of other weights at every position."""
    torch.manual_seed(100 + seed)
    first, second = torch.randn(tokens, width, 12), torch.randn(12, classes)
    shift = torch.randn(12)

    def model(e: Tensor) -> Tensor:
        return (torch.einsum("btd,tdh->bh", e, first[: e.shape[1]]) + shift).tanh() @ second

    return model


# Radii that are known.


def dual_norm(norm: str, weights: Tensor) -> Tensor:
    """By how much a perturbation of size 1 changes a linear function at most; of ``b x T x D``."""
    flat = weights.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.square().sum(1).sqrt()


def unit_of(norm: str, e: Tensor, mask: Tensor) -> Tensor:
    """What the radius 1 is, written out: ``b``."""
    rows = [row[keep].flatten() for row, keep in zip(e, mask, strict=True)]
    return torch.stack(
        [row.square().mean().sqrt() if norm == "linf" else row.norm() for row in rows]
    )


def linear(seed: int, classes: int, rivals: int) -> tuple[Model, Tensor, Tensor]:
    """A linear classifier with its weights and bias, in which only so many classes come near."""
    torch.manual_seed(200 + seed)
    weights, bias = torch.randn(classes, 4, 5), torch.zeros(classes)
    bias[rivals:] = -200
    return lambda e: torch.einsum("btd,ctd->bc", e, weights) + bias, weights, bias


def nearest_boundary(norm: str, target: Target, weights: Tensor) -> Tensor:
    """The radius that just suffices to break a linear model: ``b``."""
    right = target.clean.argmax(1)
    away = (weights[right].unsqueeze(1) - weights) * target.mask[:, None, :, None]  # b x C x T x D
    margins = target.clean.gather(1, right.unsqueeze(1)) - target.clean
    slopes = dual_norm(norm, away.flatten(0, 1)).view_as(margins)
    others = torch.arange(len(weights)) != right.unsqueeze(1)
    radii = torch.where(others, margins / slopes, math.inf).amin(1)
    return radii / unit_of(norm, target.embeddings, target.mask)


@both_norms
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("classes", "rivals"), [(2, 2), (4, 4), (6, 2), (9, 9)])
def test_of_a_linear_model_the_radius_is_the_closed_form(
    norm: str, seed: int, classes: int, rivals: int
) -> None:
    e, mask = draw(seed)
    model, weights, _ = linear(seed, classes, rivals)
    target = target_of(model, e, mask)
    attack = ProjectedGradient(norm)
    exact = nearest_boundary(norm, target, weights)
    smallest = attack.smallest(target, precision=1.0001, floor=1e-9)
    torch.testing.assert_close(smallest.radius, exact, rtol=1.01e-4, atol=0)
    assert (smallest.radius >= exact).all()
    assert (smallest.lower <= exact).all()
    assert (smallest.found.restart == 0).all()
    assert not attack.attack(target, 0.999 * exact).broken.any()
    assert attack.attack(target, 1.001 * exact).broken.all()


@both_norms
@pytest.mark.parametrize("seed", range(2))
def test_of_a_linear_regression_the_radius_is_the_closed_form(norm: str, seed: int) -> None:
    e, mask = draw(seed)
    weights, tolerance = torch.randn(4, 5), 0.7
    answers = torch.einsum("btd,td->b", e * mask.unsqueeze(-1), weights) + torch.randn(24) * 0.2

    def error(outputs: Tensor, rows: Tensor) -> Tensor:
        return outputs[:, 0] - answers[rows]

    target = target_of(
        lambda e: torch.einsum("btd,td->b", e, weights).unsqueeze(1),
        *(e, mask),
        margins=lambda outputs, rows: torch.stack(
            [tolerance - error(outputs, rows), tolerance + error(outputs, rows)], 1
        ),
        objectives={LOSS: lambda outputs, rows: error(outputs, rows).square()},
    )
    room = target.margin(target.clean, torch.arange(24))
    slope = dual_norm(norm, weights * mask.unsqueeze(-1))
    exact = (room / slope / unit_of(norm, e, mask)).clamp_min(0)
    attack = ProjectedGradient(norm, objectives=(LOSS,))
    smallest = attack.smallest(target, precision=1.0001, floor=1e-9)
    torch.testing.assert_close(smallest.radius, exact, rtol=1.01e-4, atol=0)


def brute_force(norm: str, model: Model, point: Tensor, furthest: float) -> tuple[float, float]:
    """The smallest perturbation of two numbers that changes the class, and how exact that is."""
    angles = torch.arange(0, 2 * math.pi, 2 * math.pi / 360)
    ways = torch.stack([angles.cos(), angles.sin()], 1)
    if norm == "linf":
        ways = ways / ways.abs().amax(1, keepdim=True)
    radii = torch.linspace(0, furthest, 601)[1:]
    grid = (point + radii[:, None, None] * ways).view(-1, 1, 2)
    changed = model(grid).argmax(1) != model(point.view(1, 1, 2)).argmax(1)
    broken = radii[changed.view(len(radii), -1).any(1)]
    return (float(broken.min()) if len(broken) else math.inf), furthest / 600


@both_norms
def test_in_the_plane_brute_force_finds_no_less_and_hardly_more(norm: str) -> None:
    e = draw(5, examples=12, tokens=1, width=2)[0] * 2
    model = network(5, tokens=1, width=2)
    target = target_of(model, e)
    unit = unit_of(norm, e, target.mask)
    attack = ProjectedGradient(norm, steps=20, restarts=6)
    found = attack.smallest(target, precision=1.01).radius * unit
    close = []
    for point, radius in zip(e.view(-1, 2), found.tolist(), strict=True):
        best, step = brute_force(norm, model, point, furthest=4 * float(point.norm()))
        # Between two rays of the grid the boundary may be a little nearer.
        assert radius >= min(0.995 * best, 4 * float(point.norm())) - step
        close.append(radius <= 1.05 * best + step)
    assert sum(close) >= 0.8 * len(close)


# What more effort, another batch and another seed change.


def broken_at(norm: str, radius: float = 0.3, **options: Any) -> Found:
    e, mask = draw(7, examples=40)
    target = target_of(network(7), e, mask)
    return ProjectedGradient(norm, **options).attack(target, torch.full((40,), radius))


@both_norms
@pytest.mark.parametrize("objective", [LOSS, DIVERGENCE])
def test_more_steps_break_all_that_fewer_break_by_the_same_perturbation(
    norm: str, objective: str
) -> None:
    options = {"restarts": 1, "objectives": (objective,)}
    weak = broken_at(norm, steps=1, **options)
    assert 0 < weak.broken.sum() < 40
    for steps in (2, 5, 10, 20):
        strong = broken_at(norm, steps=steps, **options)
        assert strong.broken[weak.broken].all()
        assert torch.equal(strong.delta[weak.broken], weak.delta[weak.broken])
        weak = strong


@both_norms
def test_more_starts_break_all_that_fewer_break_by_the_same_perturbation(norm: str) -> None:
    counts = []
    weak = broken_at(norm, steps=1, restarts=1)
    for restarts in (2, 4, 8):
        strong = broken_at(norm, steps=1, restarts=restarts)
        assert strong.broken[weak.broken].all()
        assert torch.equal(strong.delta[weak.broken], weak.delta[weak.broken])
        assert torch.equal(strong.restart[weak.broken], weak.restart[weak.broken])
        counts.append(int(strong.broken.sum()))
        weak = strong
    assert counts[-1] > counts[0]


@both_norms
@pytest.mark.parametrize("objectives", [(LOSS,), (DIVERGENCE,), (LOSS, DIVERGENCE)])
def test_more_effort_never_makes_the_smallest_radius_larger(
    norm: str, objectives: tuple[str, ...]
) -> None:
    e, mask = draw(8)
    target = target_of(network(8), e, mask)

    def smallest(steps: int, restarts: int) -> Tensor:
        return ProjectedGradient(norm, steps, restarts, objectives).smallest(target).radius

    radii = {(s, r): smallest(s, r) for s in (1, 4, 12) for r in (1, 3)}
    for (steps, restarts), radius in radii.items():
        for (more_steps, more_restarts), other in radii.items():
            if more_steps >= steps and more_restarts >= restarts:
                assert (other <= radius).all()
    best = radii[12, 3]
    assert best.isfinite().all()  # hence no accuracy is left at the ceiling
    assert (best < radii[1, 1]).any()


@both_norms
def test_what_is_found_is_in_the_ball_off_the_padding_and_changes_the_decision(norm: str) -> None:
    e, mask = draw(9, examples=40)
    e, model = e * mask.unsqueeze(-1), network(9)
    # Padding does have a gradient here.
    target = replace(target_of(model, e, mask), predict=lambda embeddings, rows: model(embeddings))
    everything = torch.arange(40)
    attack = ProjectedGradient(norm)
    for radius in (0.05, 0.2, 0.8):
        found = attack.attack(target, torch.full((40,), radius))
        flat = found.delta.flatten(1)
        size = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
        assert (size <= radius * unit_of(norm, e, mask) * (1 + 1e-12)).all()
        assert (found.delta[~mask] == 0).all()
        outputs = target.predict(e + found.delta, everything)
        assert torch.equal(target.margin(outputs, everything) < 0, found.broken)
        torch.testing.assert_close(outputs[found.broken], found.outputs[found.broken])
        assert found.outputs[~found.broken].isnan().all()
        assert (found.delta[~found.broken] == 0).all()
        assert torch.equal(found.restart >= 0, found.broken)
        assert found.broken.any()


@both_norms
def test_padding_other_examples_and_their_order_change_nothing(norm: str) -> None:
    e, mask = draw(10, examples=12)
    model, attack = network(10, tokens=9), ProjectedGradient(norm, steps=5)

    def radii(order: list[int], padding: int = 0) -> Tensor:
        padded = nn.functional.pad(e[order], (0, 0, 0, padding), value=7.0)
        keep = nn.functional.pad(mask[order], (0, padding))
        target = target_of(model, padded, keep, seeds=[1000 * i for i in order])
        smallest = attack.smallest(target)
        return torch.stack([smallest.radius, smallest.lower, smallest.random.double()])

    expected = radii(list(range(12)))
    torch.testing.assert_close(radii(list(range(12)), padding=5), expected)
    torch.testing.assert_close(radii(list(range(12))[::-1]), expected.flip(1))
    for i in range(12):
        torch.testing.assert_close(radii([i]), expected[:, [i]])


@both_norms
@pytest.mark.parametrize("objective", [LOSS, DIVERGENCE])
def test_seeds_decide_on_the_random_starts_and_on_nothing_else(norm: str, objective: str) -> None:
    e, mask = draw(11, examples=40)
    target = target_of(network(11), e, mask)
    other = replace(target, seeds=[seed + 500 for seed in target.seeds])
    attack = ProjectedGradient(norm, restarts=3, objectives=(objective,))
    first, again, others = (
        attack.attack(each, torch.full((40,), 0.25)) for each in (target, target, other)
    )
    assert torch.equal(first.delta, again.delta)
    both = first.broken & others.broken
    unlike = (first.delta != others.delta).any(-1).any(-1)[both]
    started_at_random = (first.restart[both] > 0) | (objective == DIVERGENCE)
    if norm == "l2":
        assert torch.equal(unlike, started_at_random)
    assert not (unlike & ~started_at_random).any()  # of L-infinity, two may meet in a corner
    starts = [attack.start(each, torch.arange(40), 1) for each in (target, other)]
    assert (starts[0] != starts[1])[mask].all()
    assert (objective == LOSS) or unlike.any()


# How a step finds its size.


def auto_pgd(norm: str, function: Model, shape: torch.Size, radius: float, steps: int) -> Tensor:
    """The points that Auto-PGD visits, after its paper, for one example at a time."""

    def project(point: Tensor) -> Tensor:
        if norm == "linf":
            return point.clamp(-radius, radius)
        return point * min(1.0, radius / max(float(point.norm()), 1e-30))

    def valued(point: Tensor) -> tuple[float, Tensor]:
        point = point.clone().requires_grad_()
        value = function(point)
        (slope,) = torch.autograd.grad(value, point)
        return value.item(), slope.sign() if norm == "linf" else slope / slope.norm()

    points, values, slopes = [torch.zeros(shape)], [], []
    eta, last, halved, best_then = 2 * radius, 0, False, -math.inf
    here, momentum = 0, torch.zeros(shape)
    for number in range(steps):
        value, slope = valued(points[-1])
        values.append(value)
        slopes.append(slope)
        here = number
        if number in (3, 5, *range(6, steps)):
            rises = sum(values[i + 1] > values[i] for i in range(last, number))
            stuck = not halved and max(values) == best_then
            halved = rises < 0.75 * (number - last) or stuck
            best_then, last = max(values), number
            if halved:
                eta, here = eta / 2, values.index(max(values))
                momentum = torch.zeros(shape)
        at = points[here]
        after = project(at + eta * slopes[here])
        if number:
            after = project(at + 0.75 * (after - at) + 0.25 * momentum)
        momentum = after - at
        points.append(after)
    return torch.stack(points)


@both_norms
def test_the_steps_are_those_of_auto_pgd(norm: str) -> None:
    e, mask = draw(18, examples=12)
    mask[:] = True
    model, steps, radius = network(18), 14, 0.6

    def height(embeddings: Tensor) -> Tensor:
        return (3 * model(embeddings)).sin().sum(1)  # with hills inside the ball

    visited: list[Tensor] = []

    def predict(embeddings: Tensor, rows: Tensor) -> Tensor:
        visited.append(embeddings.detach() - e)
        return height(embeddings).unsqueeze(1)

    target = target_of(lambda x: height(x).unsqueeze(1), e, mask)
    target = replace(
        target,
        predict=predict,
        objectives={MARGIN: lambda outputs, rows: outputs[:, 0]},
        margins=lambda outputs, rows: 1 + 0 * outputs,  # nothing breaks it
    )
    attack = ProjectedGradient(norm, steps, 1, (MARGIN,), patience=99)
    attack.attack(target, torch.full((12,), radius))
    found = torch.stack(visited, 1)
    units = radius * unit_of(norm, e, mask)
    climbed = 0
    for number, (example, unit) in enumerate(zip(e, units.tolist(), strict=True)):
        reference = auto_pgd(
            norm,
            lambda x, one=example: height((one + x).unsqueeze(0))[0],
            example.shape,
            unit,
            steps,
        )
        torch.testing.assert_close(found[number], reference, rtol=1e-6, atol=1e-9)
        start, end = height(example + found[number][[0, -1]]).tolist()
        climbed += end > start
    assert climbed >= 11


def test_patience_and_small_steps_find_a_hilltop_inside_the_ball() -> None:
    """By brute force: steps that stay large, or shrink as one over the root, keep missing it."""
    tops = torch.linspace(-0.9, 0.9, 37)
    points: list[Tensor] = []

    def height(e: Tensor, rows: Tensor) -> Tensor:
        points.append(e.detach()[:, 0, 0] - 1)
        return -(e[:, 0] - 1 - tops[rows].unsqueeze(1)).square()

    e = torch.ones(37, 1, 1)
    target = replace(
        target_of(lambda x: x[:, 0], e),
        predict=height,
        objectives={MARGIN: lambda outputs, rows: outputs[:, 0]},
        margins=lambda outputs, rows: 1 + 0 * outputs,
    )
    ProjectedGradient("linf", 20, 1, (MARGIN,), patience=99).attack(target, torch.ones(37))
    nearest = (torch.stack(points) - tops).abs().amin(0)
    assert nearest.max() < 0.02


# Models that are hard on an attack.


def test_patience() -> None:
    """The decision is one plateau with a hole, which the ascent comes to in zigzags."""

    def model(e: Tensor) -> Tensor:
        x = e[:, 0] - 3  # b x 1; the embedding is 3
        hole = (x - 1.5).abs() < 0.3
        return torch.cat([-(x - 1.5).square(), torch.where(hole, -1.0, 1.0)], 1)

    target = target_of(
        model,
        torch.full((1, 1, 1), 3.0),
        margins=lambda outputs, rows: outputs[:, 1:],
        objectives={LOSS: lambda outputs, rows: outputs[:, 0]},
    )
    attack = ProjectedGradient(steps=20, restarts=1, objectives=(LOSS,))
    assert not replace(attack, patience=3).attack(target, torch.ones(1)).broken
    assert replace(attack, patience=20).attack(target, torch.ones(1)).broken


@both_norms
def test_the_divergence_alone_breaks_examples(norm: str) -> None:
    e, mask = draw(12, examples=40)
    target = target_of(network(12), e, mask)
    inputs = []

    def noted(embeddings: Tensor, rows: Tensor) -> Tensor:
        inputs.append(embeddings.detach())
        return target.predict(embeddings, rows)

    attack = ProjectedGradient(norm, restarts=1, objectives=(DIVERGENCE,))
    found = attack.attack(replace(target, predict=noted), torch.full((40,), 0.3))
    assert found.broken.sum() > 10
    assert (inputs[0] != e).any(-1).any(-1).all()
    assert not found.flat.any()  # as it would be, were the start at zero


@both_norms
def test_a_constant_model_cannot_be_broken_and_is_flat(norm: str) -> None:
    e, mask = draw(13)
    target = target_of(lambda e: e.sum((1, 2)).mul(0).unsqueeze(1) + torch.tensor([2.0, 1.0]), e)
    smallest = ProjectedGradient(norm).smallest(target)
    assert smallest.radius.isinf().all()
    assert (smallest.lower == 100).all()
    assert smallest.found.flat.all()
    assert not smallest.random.any()
    assert not ProjectedGradient(norm).smallest(target_of(network(13), e, mask)).found.flat.any()


@both_norms
@pytest.mark.filterwarnings("error")
def test_gradients_that_are_no_numbers_spoil_neither_the_attack_nor_its_neighbours(
    norm: str,
) -> None:
    e, mask = draw(14)
    target = target_of(network(14), e, mask)
    bad = torch.arange(24) % 3 == 0

    def spoiled(embeddings: Tensor, rows: Tensor) -> Tensor:
        outputs, worse = target.predict(embeddings, rows), bad[rows]
        # Infinity, the slope of a root at 0, times 0.
        zero = embeddings[worse].mul(0).sum((1, 2)).abs().sqrt().unsqueeze(1)
        return outputs.index_put((worse.nonzero().flatten(),), target.clean[rows][worse] + zero)

    attack = ProjectedGradient(norm)
    expected = attack.smallest(target)
    assert not expected.found.flat.any()
    found = attack.smallest(replace(target, predict=spoiled))
    assert torch.equal(found.found.flat, bad)
    assert found.radius[bad].isinf().all()
    torch.testing.assert_close(found.radius[~bad], expected.radius[~bad])


def linear_in(width: int, height: float) -> Target:
    """Of ``width`` numbers, all of the same weight: broken where their mean falls by ``height``."""
    e = torch.ones(50, 1, width)
    return target_of(lambda e: torch.stack([e.mean((1, 2)) - 1 + height, e.sum((1, 2)) * 0], 1), e)


@both_norms
def test_whether_random_perturbations_break_it_as_well(norm: str) -> None:
    """Of one number half of all directions do; of 1000, a random one has hardly an effect."""
    attack = ProjectedGradient(norm)
    half, none = (attack.smallest(linear_in(width, 0.1)) for width in (1, 1000))
    torch.testing.assert_close(half.radius, none.radius)
    assert half.random.double().mean() > 0.95
    assert not none.random.any()


@both_norms
def test_a_search_without_gradients_unmasks(norm: str) -> None:
    """A staircase has no slope, but steps down; a smooth model leaves nothing to be found."""
    e, mask = draw(16)
    model = network(16)
    attack = ProjectedGradient(norm)
    honest = attack.smallest(target_of(model, e, mask))
    assert honest.search.double().mean() < 0.1

    def stairs(rows: Tensor, cut: int) -> Smallest:
        def staircase(embeddings: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(embeddings, (0, 0, 0, 4 - embeddings.shape[1]))
            return (model(padded).detach() * 8).round() + 0 * embeddings.sum()

        seeds = [1000 * i for i in rows.tolist()]
        target = target_of(staircase, e[rows, :cut], mask[rows, :cut], seeds=seeds)
        return attack.smallest(target)

    every = stairs(torch.arange(24), 4)
    assert every.found.flat.any()
    assert every.search.double().mean() > 0.3
    assert (every.lower[every.search] > 0).all()
    rows = torch.tensor([5, 2])  # it depends on no other example, and on no padding
    few = stairs(rows, int(mask[rows].sum(1).max()))
    assert torch.equal(few.search, every.search[rows])


@both_norms
@pytest.mark.parametrize("objective", [MARGIN, RATIO])
def test_margins_alone_break_examples(norm: str, objective: str) -> None:
    """At other radii than the loss, at the same effort."""
    e, mask = draw(17)
    attack = ProjectedGradient(norm, steps=3, restarts=1, objectives=(objective,))
    radii = attack.smallest(target_of(network(17), e, mask)).radius
    assert radii.isfinite().all()
    loss = replace(attack, objectives=(LOSS,)).smallest(target_of(network(17), e, mask)).radius
    assert not torch.equal(radii, loss)


def test_wrong_from_the_start() -> None:
    e, mask = draw(15)
    target = target_of(
        network(15),
        e,
        mask,
        margins=lambda outputs, rows: (3.5 - rows + 0 * outputs[:, 0]).unsqueeze(1),
    )
    smallest = ProjectedGradient().smallest(target)
    assert (smallest.radius[4:] == 0).all()
    assert (smallest.radius[:4] == math.inf).all()
    assert torch.equal(smallest.found.outputs[4:], target.clean[4:])
    everything = replace(target, margins=lambda outputs, rows: -1 + 0 * outputs[:, :1])
    assert (ProjectedGradient().smallest(everything).radius == 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "l1"}, "norm is 'l1': it must be one of linf, l2"),
        ({"steps": 0}, "steps is 0: it must be a whole number, 1 or more"),
        ({"restarts": 1.5}, "restarts is 1.5"),
        ({"patience": -1}, "patience is -1"),
        ({"objectives": ()}, "objectives are none: choose from loss, divergence"),
        ({"objectives": ("loss", "hinge")}, "objectives are loss, hinge"),
    ],
)
def test_wrong_usage(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ProjectedGradient(**wrong)


# RoBERTas.

LABELS = ["no", "maybe", "yes"]
TEXTS = {"single": 1, "pair": 2, "regression": 1, "choices": 4}


def roberta(outputs: int) -> RobertaModel:
    """Untrained, but of predictions that depend on the input; with a head."""
    torch.set_default_dtype(torch.float32)  # which parts of fairseq insist on
    model = make_model(make_task(make_dictionary()))
    model.register_classification_head("head", num_classes=outputs, inner_dim=16)
    with torch.no_grad():
        for parameter in model.classification_heads["head"].parameters():
            parameter.mul_(4)
    return model


def predictor_of(kind: str, folder: Path) -> Predictor:
    """A model that reads the words w0 to w39."""
    make_dictionary().save(str(folder / "dict.txt"))
    vocabulary = Vocabulary.load(folder)
    others = {"regression": Regression(scale=5.0), "choices": MultipleChoice(("0", "1", "2"))}
    problem = others.get(kind, Classification(tuple(LABELS)))
    outputs = 1 if kind in others else 3
    checkpoint = SimpleNamespace(
        model=roberta(outputs),
        head="head",
        heads={"head": outputs},
        problem=problem,
        dictionary=vocabulary.dictionary,
        vocabulary=vocabulary,
        layout=Layout(problem, max_positions=62),
        record=SimpleNamespace(inputs=TEXTS[kind]),
    )
    return Predictor(checkpoint)


def sentence(length: int) -> str:
    return " ".join(f"w{word}" for word in torch.randint(40, (length,)).tolist())


def examples_for(predictor: Predictor, kind: str, count: int = 14) -> list[Example]:
    """Of many lengths; most answers are what the model says, or are near it."""
    made = []
    for number in range(count):
        texts = tuple(sentence(3 + (5 * number + 3 * k) % 13) for k in range(TEXTS[kind]))
        [said] = predictor.predict([texts])
        labels = predictor.problem.labels
        if not labels:
            answer = f"{said.value + 0.1 * number - 0.8:.2f}"
        else:
            shift = number % 4 == 0
            answer = labels[(labels.index(said.label) + shift) % 3]
        made.append(Example(number, texts, answer))
    return made


@pytest.fixture(params=sorted(TEXTS))
def tested(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Subject, list[Example]]:
    """A subject that computes in float64, and examples, some of which it has wrong."""
    predictor = predictor_of(request.param, tmp_path)
    examples = examples_for(predictor, request.param)
    predictor.model.double()
    tolerance = None if predictor.problem.labels else 0.4
    return Subject(predictor, tolerance, 300, 1, examples), examples


def test_a_target_is_the_model(tested: tuple[Subject, list[Example]]) -> None:
    subject, examples = tested
    target = subject.target(examples)
    logits = subject.predictor.logits([example.texts for example in examples]).double()
    torch.testing.assert_close(target.clean, logits, atol=1e-6, rtol=1e-6)
    assert logits.std(0).max() > 0.05
    everything = torch.arange(len(examples))
    for rows in (everything, torch.tensor([5, 0, 9, 5])):
        outputs = target.predict(target.embeddings[rows], rows)
        torch.testing.assert_close(outputs, target.clean[rows])
    inputs = [subject.predictor.inputs_of(example.texts) for example in examples]
    assert target.mask.sum(1).tolist() == [sum(map(len, each)) for each in inputs]
    assert not target.mask.all()
    # Every token counts: those of the second text and of every candidate, too.
    for token in target.mask.any(0).nonzero().flatten().tolist():
        rows = target.mask[:, token].nonzero().flatten()
        moved = target.embeddings[rows]
        moved[:, token] += 1 + torch.arange(moved.shape[-1]) % 3
        assert (target.predict(moved, rows) != target.clean[rows]).any(1).all()
    assert not any(p.requires_grad for p in subject.predictor.model.parameters())


def test_broken_means_not_correct(tested: tuple[Subject, list[Example]]) -> None:
    subject, examples = tested
    target = subject.target(examples)
    everything = torch.arange(len(examples))
    wrong = target.margin(target.clean, everything) < 0
    verdicts = subject.verdicts([(example, example.texts) for example in examples])
    assert [not verdict.correct for verdict in verdicts] == wrong.tolist()
    assert 0 < wrong.sum() < len(examples)

    smallest = ProjectedGradient(steps=5).smallest(target)
    assert torch.equal(smallest.radius == 0, wrong)
    assert smallest.radius.isfinite().all()
    assert not smallest.found.flat.any()
    for example, outputs in zip(examples, smallest.found.outputs, strict=True):
        assert not subject.verdict(example, outputs).correct
    outputs = target.predict(target.embeddings + smallest.found.delta, everything)
    torch.testing.assert_close(outputs, smallest.found.outputs)
    assert all(p.grad is None for p in subject.predictor.model.parameters())


def test_radii_of_a_roberta_depend_on_nothing_but_the_example(
    tested: tuple[Subject, list[Example]],
) -> None:
    subject, examples = tested
    examples = examples[:4]
    attack = ProjectedGradient(steps=3)
    together = attack.smallest(subject.target(examples)).radius
    for example, radius in zip(examples, together, strict=True):
        alone = attack.smallest(subject.target([example])).radius
        torch.testing.assert_close(alone, radius.view(1))


def test_losses_are_those_of_the_verdicts_up_to_a_rising_function(
    tested: tuple[Subject, list[Example]],
) -> None:
    subject, examples = tested
    target = subject.target(examples)
    outputs = target.clean + torch.randn_like(target.clean)
    loss = target.objectives[LOSS](outputs, torch.arange(len(examples)))
    for example, row, found in zip(examples, outputs, loss.tolist(), strict=True):
        expected = subject.verdict(example, row).loss
        if subject.problem.categorical:  # the odds against an answer of this likelihood
            expected = math.log(math.expm1(expected))
        assert found == pytest.approx(expected)


def test_margin_and_ratio_are_those_of_the_paper(tested: tuple[Subject, list[Example]]) -> None:
    """Croce and Hein (2020), the difference of logits and equation 3; the ratio knows no scale."""
    subject, examples = tested
    if not subject.problem.categorical:
        pytest.skip("a number has no logits")
    target = subject.target(examples)
    outputs = target.clean + torch.randn_like(target.clean)
    rows = torch.arange(len(examples))
    margin, ratio = (target.objectives[name](outputs, rows) for name in (MARGIN, RATIO))
    for example, row, one, other in zip(examples, outputs, margin, ratio, strict=True):
        right = subject.problem.labels.index(example.answer)
        wrong = max(value for i, value in enumerate(row.tolist()) if i != right)
        first, _, third = sorted(row.tolist(), reverse=True)[:3]
        assert float(one) == pytest.approx(wrong - float(row[right]))
        assert float(other) == pytest.approx((wrong - float(row[right])) / (first - third))
    assert torch.allclose(target.objectives[RATIO](7 * outputs, rows), ratio)


def test_an_example_is_broken_when_no_accepted_answer_is_left(tmp_path: Path) -> None:
    predictor = predictor_of("single", tmp_path)
    examples = []
    for example in examples_for(predictor, "single"):
        [said] = predictor.predict([example.texts])
        others = tuple(label for label in LABELS if label != said.label)
        accepted = others if example.number % 3 == 0 else (said.label, others[0])
        examples.append(replace(example, answer="several", accepted=accepted))
    predictor.model.double()
    subject = Subject(predictor, None, 500, 1, [])
    smallest = ProjectedGradient().smallest(subject.target(examples))
    verdicts = subject.verdicts([(example, example.texts) for example in examples])
    for example, radius, verdict in zip(examples, smallest.radius, verdicts, strict=True):
        assert verdict.correct == (example.number % 3 != 0) == bool(radius > 0)
    for example, outputs in zip(examples, smallest.found.outputs, strict=True):
        assert LABELS[outputs.argmax()] not in example.accepted


def test_batches(tested: tuple[Subject, list[Example]]) -> None:
    subject, examples = tested

    def lengths(example: Example) -> list[int]:
        return [len(tokens) for tokens in subject.predictor.inputs_of(example.texts)]

    for order in (examples, sorted(examples, key=lambda e: -max(lengths(e)))):
        batches = list(subject.batches(order))
        assert [example for batch in batches for example in batch] == order
        assert 1 < len(batches) < len(order)
        for batch in batches:
            inputs = [length for example in batch for length in lengths(example)]
            assert len(inputs) * max(inputs) <= 300 or len(batch) == 1


@both_norms
def test_a_model_that_is_sure_is_broken_at_the_same_radius(norm: str, tmp_path: Path) -> None:
    """Its softmax is 0 or 1 to the last digit, but that does not shield it."""
    predictor = predictor_of("single", tmp_path)
    examples = examples_for(predictor, "single", 20)
    attack = ProjectedGradient(norm, restarts=1, objectives=(LOSS,))
    # A third class that never is near: the way up is the same at every scale.
    head = predictor.model.classification_heads["head"].out_proj
    with torch.no_grad():
        head.bias[2] -= 1e4
    radii = []
    for scale in (1, 1000):
        with torch.no_grad():
            head.weight.mul_(scale), head.bias.mul_(scale)
        target = Subject(predictor, None, 500, 1, []).target(examples)
        smallest = attack.smallest(target)
        assert not smallest.found.flat.any()
        radii.append(smallest.radius)
    probabilities = target.clean.softmax(1)
    assert ((probabilities == 0) | (probabilities == 1)).double().mean() > 0.9
    assert radii[0].isfinite().all()
    torch.testing.assert_close(*radii, rtol=0.02, atol=0)


# An independent implementation.


class FromEmbeddings(nn.Module):
    """All examples of a target, as the function of embeddings that foolbox asks for."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.target.predict(embeddings, torch.arange(len(embeddings)))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Of a RoBERTa that has learnt which third of the words a sentence has most of."""
    torch.manual_seed(1)
    predictor = predictor_of("single", tmp_path_factory.mktemp("taught"))
    model, dictionary = predictor.model, predictor.checkpoint.dictionary
    groups = torch.tensor([int(symbol[1:]) * 3 // 40 for symbol in dictionary.symbols[4:44]])

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        words = torch.randint(40, (count, 10))
        ends = torch.full((count, 1), dictionary.bos()), torch.full((count, 1), dictionary.eos())
        votes = nn.functional.one_hot(groups[words]).sum(1)
        return torch.cat([ends[0], words + 4, ends[1]], 1), votes.argmax(1)

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        tokens, answers = drawn(64)
        outputs = model(tokens, features_only=True, classification_head_name="head")[0]
        loss = cross_entropy(outputs, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    subject = Subject(predictor, None, 10000, 1, [])
    tokens, answers = drawn(300)
    texts = [" ".join(dictionary[word] for word in row[1:-1]) for row in tokens]
    examples = [Example(i, (text,), LABELS[answers[i]]) for i, text in enumerate(texts)]
    verdicts = subject.verdicts([(example, example.texts) for example in examples])
    right = [e for e, verdict in zip(examples, verdicts, strict=True) if verdict.correct]
    assert len(right) > 200  # it has learnt it: by chance it were 100
    return subject.target(right[:60])


@both_norms
@pytest.mark.parametrize("step", [0.05, 0.25])
def test_foolbox_breaks_nothing_that_we_do_not(norm: str, step: float, taught: Target) -> None:
    """With as many steps and starts, whether its steps are small or large."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    ours = ProjectedGradient(norm, steps=10, restarts=2)
    unit = ours.unit(taught)[:, 0, 0]
    model = foolbox.PyTorchModel(FromEmbeddings(taught).eval(), bounds=(-1e4, 1e4))
    kind = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }[norm]
    theirs = kind(steps=10, rel_stepsize=step, random_start=True).repeat(2)
    answers = taught.clean.argmax(1)
    for radius in (0.5, 1, 2):  # in those that break half of the examples, or so
        absolute = radius * {"linf": 0.07, "l2": 0.035}[norm] * float(unit.median())
        _, _, [success] = theirs(model, taught.embeddings, answers, epsilons=[absolute])
        found = ours.attack(taught, absolute / unit)
        assert found.broken.sum() >= success.sum() > 0
        assert (success & ~found.broken).sum() <= 1
