"""Every method on a model of plain functions, in float64, against the formulas of its paper."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.naive_methods import METHODS as NAIVE
from support.naive_methods import Batch, divided, length, shortened
from torch import Tensor, nn
from torch.nn import functional

from alum_fairseq.adversarial.method import Clean, Graph, Result, Update
from alum_fairseq.adversarial.methods import METHODS, build_method
from alum_fairseq.adversarial.presets import PRESETS, Preset
from alum_fairseq.errors import UsageError

PAD = 0
TOKENS = torch.tensor([[3, 5, 7, 2, 9], [4, 6, 8, PAD, PAD], [1, 2, PAD, PAD, PAD]])
ALL_PADDING = torch.tensor([[3, 5, 7, 2, 9], [PAD, PAD, PAD, PAD, PAD]])

# A perturbation of 1e-5 moves the loss by 1e-10: weighed so that it shows.
TINY = ("paper", "r3f", "smart")


class Toy(nn.Module):
    """Words, mixed over the tokens of a sentence (padding too), and a head."""

    def __init__(self, tokens: Tensor = TOKENS, outputs: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(11, 4)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, outputs)
        self.mix = nn.Parameter(torch.randn(tokens.shape[1], tokens.shape[1]))
        self.tokens, self.scale = tokens, scale
        self.targets = torch.arange(len(tokens)) % max(outputs, 2)
        self.double()

    @property
    def mask(self) -> Tensor:
        return self.tokens.ne(PAD)

    def words(self) -> Tensor:
        return self.table(self.tokens)

    def logits(self, words: Tensor) -> Tensor:
        return self.scale * self.second(torch.tanh(self.first(self.mix @ words)).mean(1))

    def loss(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == 1:
            return (logits.squeeze(-1) - self.targets).pow(2).sum()
        return functional.cross_entropy(logits, self.targets, reduction="sum")

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.zero_grad()
        loss.backward()
        found = {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **found}


def update_of(
    toy: Toy,
    parts: Sequence[int] | None = None,
    weights: Tensor | None = None,
    momentum: Tensor | None = None,
    **options: Any,
) -> Update:
    """The toy's batch as the engine takes it; its calls of the model in ``parts`` along T."""

    def clean(graph: Graph) -> Clean:
        below = toy.words().split(list(parts or [toy.tokens.shape[1]]), dim=1)
        entries = below
        if graph != "whole":
            entries = tuple(each.detach().requires_grad_() for each in below)
        words = torch.cat(entries, dim=1)
        with torch.set_grad_enabled(graph != "none"):
            logits = toy.logits(words)
            loss = toy.loss(logits)
        cut = () if graph == "whole" else below
        return Clean(loss, logits, words, toy.mask, weights, entries, cut)

    return Update(
        clean,
        toy.logits,
        lambda words: toy.loss(toy.logits(words)),
        list(toy.parameters()),
        torch.Generator().manual_seed(5),
        momentum=None if momentum is None else lambda: momentum,
        **options,
    )


def batch_of(toy: Toy, **options: Any) -> Batch:
    """The same for the references, with the same random numbers."""
    words = toy.words().detach()
    generator = torch.Generator().manual_seed(5)

    def run(r: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = toy.logits(toy.words() if r is None else toy.words() + r)
        return toy.loss(logits), logits

    def noise(name: str) -> Tensor:
        return getattr(torch, name)(words.shape, dtype=words.dtype, generator=generator)

    return Batch(run, words, toy.mask, noise, **options)


def momentum_of(toy: Toy) -> Tensor:
    other = copy.deepcopy(toy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.8)
        return other.logits(other.words())


def result_of(toy: Toy, preset: Preset | str, alpha: float, **options: Any) -> Result:
    preset = PRESETS[preset] if isinstance(preset, str) else preset
    return build_method(preset).loss(update_of(toy, **options), alpha)


def alpha_of(name: str) -> float:
    return 1e7 if name in TINY else 1.7


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-9 * size, msg=key)


def assert_moved(expected: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """What the method adds is some fifty times what the comparison allows, everywhere.

    But for the head's bias: the difference of two numbers does not depend on it.
    """
    size = max(float(value.abs().max()) for value in expected.values())
    for key in plain.keys() - {"second.bias"}:
        assert (expected[key] - plain[key]).abs().max() > 5e-8 * size, key


def check(toy: Toy, name: str, parts: Sequence[int] | None = None, **options: Any) -> None:
    alpha = alpha_of(name)
    expected = toy.gradients(NAIVE[name](batch_of(toy, **options), alpha))
    options.pop("numbers", None)
    preset = PRESETS[name]
    if toy.second.out_features == 1:
        preset = replace(preset, divergence="squared_error")
    got = toy.gradients(result_of(toy, preset, alpha, parts=parts, **options).loss)
    assert_equal(got, expected)
    assert_moved(expected, toy.gradients(toy.loss(toy.logits(toy.words()))))


@pytest.mark.parametrize("name", NAIVE)
def test_a_method_is_its_paper_s_formula(name: str) -> None:
    assert set(NAIVE) == set(PRESETS)
    toy = Toy()
    check(toy, name, momentum=momentum_of(toy) if name == "smart" else None)


@pytest.mark.parametrize("name", NAIVE)
def test_a_method_of_numbers_is_its_formula_with_squared_errors(name: str) -> None:
    toy = Toy(outputs=1)
    check(toy, name, numbers=True, momentum=momentum_of(toy) if name == "smart" else None)


@pytest.mark.parametrize("name", NAIVE)
def test_predictions_have_their_weights(name: str) -> None:
    """The task's loss has none of them, so that methods without a divergence do not move."""
    toy = Toy()
    check(toy, name, weights=torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("name", NAIVE)
def test_a_sentence_of_nothing_but_padding_is_left_alone(name: str) -> None:
    toy = Toy(ALL_PADDING)
    check(toy, name)
    delta = result_of(toy, name, 1.0).delta
    assert delta[0].abs().max() > 0
    assert torch.equal(delta[1], torch.zeros_like(delta[1]))


@pytest.mark.parametrize("name", NAIVE)
def test_calls_of_the_model_are_perturbed_together(name: str) -> None:
    """Their embeddings stand side by side: the norm of a sentence is that of all of them."""
    check(Toy(), name, parts=(2, 3))


@pytest.mark.parametrize("name", NAIVE)
def test_a_pass_that_never_came_by_has_its_task_s_loss_alone(name: str) -> None:
    toy = Toy()
    update = update_of(toy)

    def clean(graph: Graph) -> Clean:
        logits = toy.logits(toy.words())
        return Clean(toy.loss(logits), logits)

    preset = PRESETS[name]
    result = build_method(preset).loss(replace(update, clean=clean), 1.0)
    assert result.delta is None
    assert_equal(toy.gradients(result.loss), toy.gradients(clean("whole").loss))


# Settings that no preset has, or that one alone has.


def variant(name: str, method: dict[str, Any] | None = None, **adversary: Any) -> Preset:
    preset = PRESETS[name]
    changed = {"adversary": replace(preset.adversary, **adversary), **(method or {})}
    return replace(preset, **changed)


def unit_of(batch: Batch) -> Tensor:
    return batch.rms() * batch.coordinates().sqrt()


def one_sided(batch: Batch, alpha: float) -> Tensor:
    """``calibrated`` with the clean prediction as a fixed target."""
    clean = batch.logits().detach()
    delta = 0.01 * batch.rms() * batch.normal()
    g = batch.gradient(lambda r: batch.d(batch.logits(r), clean), delta)
    delta = delta + unit_of(batch) * divided(g, length(g))
    delta = 0.03 * unit_of(batch) * delta / (length(delta) + 1e-6 * unit_of(batch))
    return batch.loss() + alpha * batch.d(batch.logits(delta), clean)


def along_the_loss(batch: Batch, alpha: float) -> Tensor:
    """``calibrated`` that climbs the task's loss."""
    delta = 0.01 * batch.rms() * batch.normal()
    g = batch.gradient(batch.loss, delta)
    delta = delta + unit_of(batch) * divided(g, length(g))
    delta = 0.03 * unit_of(batch) * delta / (length(delta) + 1e-6 * unit_of(batch))
    return batch.loss() + alpha * batch.consistency(batch.logits(delta), batch.logits())


def along_the_loss_from_zero(batch: Batch, alpha: float) -> Tensor:
    """The same, of one side, from the unperturbed input, in signs, at the infinity norm."""
    clean = batch.logits().detach()
    g = batch.gradient(batch.loss, torch.zeros_like(batch.embeddings))
    delta = (0.02 * batch.rms() * g.sign()).clamp(-0.01 * batch.rms(), 0.01 * batch.rms())
    return batch.loss() + alpha * batch.d(batch.logits(delta), clean)


def direction_alone(batch: Batch, alpha: float) -> Tensor:
    """``calibrated`` with an infinite step: nothing is left of the start."""
    clean = batch.logits().detach()
    delta = 0.01 * batch.rms() * batch.normal()
    for _ in range(2):
        g = batch.gradient(lambda r: batch.d(batch.logits(r), clean), delta)
        delta = 0.03 * unit_of(batch) * divided(g, length(g))
    return batch.loss() + alpha * batch.consistency(batch.logits(delta), batch.logits())


def not_projected(batch: Batch, alpha: float) -> Tensor:
    """``pgd`` whose points may leave the ball."""
    r = 0.016 * batch.rms() * batch.uniform()
    for _ in range(3):
        g = batch.gradient(batch.loss, r)
        r = r + 0.0133 * unit_of(batch) * divided(g, length(g))
    return batch.loss() + alpha * batch.loss(r)


def on_the_divergence(batch: Batch, alpha: float) -> Tensor:
    """``pgd`` whose ascent is ALUM's: of the loss, the point is taken alone."""
    clean = batch.logits().detach()
    r = 0.016 * batch.rms() * batch.uniform()
    for _ in range(3):
        g = batch.gradient(lambda r: batch.d(batch.logits(r), clean), r)
        r = shortened(r + 0.0133 * unit_of(batch) * divided(g, length(g)), 0.016 * unit_of(batch))
    return batch.loss() + alpha * batch.loss(r)


def unclimbed(batch: Batch, alpha: float) -> Tensor:
    """``freelb`` without steps: the loss at the random start."""
    r = 0.4 / batch.coordinates().sqrt() * batch.uniform()
    return batch.loss(shortened(r, torch.full_like(length(r), 0.3)))


def several_steps_of_fgm(batch: Batch, alpha: float) -> Tensor:
    """From zero, of which the first gradient is the clean pass's own, and raw."""
    r = torch.zeros_like(batch.embeddings)
    for _ in range(3):
        r = shortened(r + 0.01 * batch.gradient(batch.loss, r), torch.full_like(length(r), 0.02))
    return batch.loss() + alpha * batch.loss(r)


VARIANTS: dict[str, tuple[Preset, Callable[[Batch, float], Tensor]]] = {
    "sides adversarial": (variant("calibrated", {"sides": "adversarial"}), one_sided),
    "objective task-loss": (variant("calibrated", {"objective": "task-loss"}), along_the_loss),
    "start zero": (
        variant(
            "calibrated",
            {"objective": "task-loss", "sides": "adversarial"},
            start="zero",
            norm="linf",
            norm_scope="token",
            gradient="steepest",
            step_size=0.02,
            epsilon=0.01,
            projection="clip",
        ),
        along_the_loss_from_zero,
    ),
    "infinite step size": (variant("calibrated", step_size=math.inf, steps=2), direction_alone),
    "projection none": (variant("pgd", projection="none"), not_projected),
    "objective divergence": (variant("pgd", {"objective": "divergence"}), on_the_divergence),
    "steps 0": (variant("freelb", steps=0), unclimbed),
    "raw gradient": (
        variant(
            "fgm",
            steps=3,
            gradient="raw",
            step_size=0.01,
            epsilon=0.02,
            epsilon_mode="absolute",
        ),
        several_steps_of_fgm,
    ),
}


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_setting_does_what_its_name_says(name: str, scale: float) -> None:
    preset, naive = VARIANTS[name]
    toy = Toy()
    expected = toy.gradients(naive(batch_of(toy), 1.7))
    got = toy.gradients(result_of(toy, preset, 1.7, scale=scale).loss * scale)
    assert_equal({n: value / scale for n, value in got.items()}, expected)
    base = next(b for b in PRESETS if PRESETS[b].method == preset.method)
    base = {"adversarial-loss": "pgd"}.get(preset.method, base)
    assert_moved(expected, toy.gradients(NAIVE[base](batch_of(toy), 1.7)))


def test_proximal_is_a_factor_of_the_distance_to_the_momentum_model() -> None:
    toy = Toy()
    momentum = momentum_of(toy)
    results = {
        factor: toy.gradients(
            result_of(toy, replace(PRESETS["smart"], proximal=factor), 1.0, momentum=momentum).loss
        )
        for factor in (1.0, 3.0)
    }
    batch = batch_of(toy)
    distance = toy.gradients(batch.symmetric(batch.logits(), momentum))
    for key, value in distance.items():
        difference = results[3.0].get(key) - results[1.0].get(key)
        torch.testing.assert_close(difference, 2 * value, rtol=1e-8, atol=1e-9)
    assert distance["loss"] > 1e-3


# Frozen parameters, and what is below the perturbation.


@pytest.mark.parametrize("frozen", [("table",), ("first", "second", "mix")], ids=str)
@pytest.mark.parametrize("name", NAIVE)
def test_frozen_parameters_have_no_gradient_and_the_others_theirs(
    name: str, frozen: tuple[str, ...]
) -> None:
    toy = Toy()
    for parameter, value in toy.named_parameters():
        value.requires_grad_(not parameter.startswith(frozen))
    check(toy, name, parts=(1, 4))


# Loss scaling.

ACCUMULATING = [name for name in PRESETS if METHODS[PRESETS[name].method].accumulates]


@pytest.mark.parametrize("scale", [2.0**-7, 2.0**12])
@pytest.mark.parametrize("name", NAIVE)
def test_gradients_are_the_same_whatever_the_loss_is_scaled_by(name: str, scale: float) -> None:
    toy = Toy()
    expected = toy.gradients(result_of(toy, name, 1.7).loss)
    got = toy.gradients(result_of(toy, name, 1.7, scale=scale).loss * scale)
    assert_equal({key: value / scale for key, value in got.items()}, expected)
    # A factor that was not announced, such as fairseq's of update-freq, multiplies all the same.
    got = toy.gradients(result_of(toy, name, 1.7, scale=scale).loss * 3)
    assert_equal({key: value / 3 for key, value in got.items()}, expected)


@pytest.mark.parametrize("name", ACCUMULATING)
def test_gradients_that_float16_cannot_hold_survive_in_a_scaled_loss(name: str) -> None:
    wide = Toy(scale=1e-6).float()  # whose random numbers are those of half precision
    expected = wide.gradients(result_of(wide, name, 1.0).loss)["first.weight"]
    assert 1e-9 < expected.abs().max() < 2**-20  # of which float16 keeps 4 bits at most
    narrow = copy.deepcopy(wide).half()
    errors = {}
    for scale in (1.0, 2.0**12):
        result = result_of(narrow, name, 1.0, scale=scale)
        got = narrow.gradients(result.loss.float() * scale)["first.weight"]
        errors[scale] = float((got.float() / scale - expected).norm() / expected.norm())
    assert errors[2.0**12] < 0.02
    assert errors[1.0] > 0.5


# What is not finite.


def poisoned(update: Update, calls: set[int], value: float) -> Update:
    """Whose task's loss at a perturbed point is not finite in these calls, gradient and all."""
    count = iter(range(100))

    def task_loss(words: Tensor) -> Tensor:
        loss = update.task_loss(words)
        return loss * value if next(count) in calls else loss

    return replace(update, task_loss=task_loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_point_of_freelb_whose_loss_is_not_finite_counts_as_zero(value: float) -> None:
    """The last one: the others are as they were."""
    toy = Toy()
    method = build_method(PRESETS["freelb"])
    got = toy.gradients(method.loss(poisoned(update_of(toy), {3}, value), 1.0).loss)

    batch = batch_of(toy)
    r = 0.4 / batch.coordinates().sqrt() * batch.uniform()
    total = batch.loss(r)
    for _ in range(2):
        g = batch.gradient(batch.loss, r)
        r = shortened(r + 0.025 * divided(g, length(g)), torch.full_like(length(g), 0.3))
        total = total + batch.loss(r)
    assert_equal(got, toy.gradients(total / 4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["fgm", "pgd"])
def test_the_clean_loss_stands_where_the_perturbed_one_is_not_finite(
    name: str, value: float
) -> None:
    toy = Toy()
    preset = PRESETS[name]
    last = {"fgm": 0, "pgd": 3}[name]
    update = poisoned(update_of(toy), {last}, value)
    got = toy.gradients(build_method(preset).loss(update, 1.0).loss)
    assert_equal(got, toy.gradients(toy.loss(toy.logits(toy.words()))))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAIVE)
def test_a_model_that_is_not_finite_anywhere_shows_in_loss_and_gradients(
    name: str, value: float
) -> None:
    """Whoever trains it must see that; counted as zero, it would go on for ever."""
    toy = Toy()
    toy.scale = value
    got = toy.gradients(result_of(toy, name, 1.0).loss)
    assert not got["loss"].isfinite()
    assert not got["first.weight"].isfinite().any()


@pytest.mark.parametrize("name", ["calibrated", "smart", "pgd", "freelb"])
def test_a_perturbation_that_is_not_finite_is_none(name: str) -> None:
    """Else its size would be, in the log, of all batches of an interval."""
    toy = Toy()

    def poison(words: Tensor) -> Tensor:
        words = words.clone()
        words.register_hook(lambda gradient: gradient * math.nan)
        return words

    update = update_of(toy)
    if PRESETS[name].objective == "divergence":
        predict = update.predict
        update = replace(update, predict=lambda words: predict(poison(words)))
    else:
        task_loss = update.task_loss
        update = replace(update, task_loss=lambda words: task_loss(poison(words)))
    result = build_method(PRESETS[name]).loss(update, 1.0)
    assert result.delta is None
    assert result.loss.isfinite()


# What an update is asked for.


def test_known_gradients_are_handed_out_once() -> None:
    toy = Toy()
    loss = result_of(toy, "freelb", 1.0).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once only"):
        loss.backward()


@pytest.mark.parametrize(
    ("name", "passes"), [("fgm", 1), ("pgd", 4), ("freelb", 4), ("freelb++", 11)]
)
def test_a_method_makes_no_more_passes_than_its_cost_says(name: str, passes: int) -> None:
    """Beside the clean one; FGM's first gradient is that pass's own."""
    toy = Toy()
    update, count = update_of(toy), []
    counted = replace(update, task_loss=lambda words: count.append(1) or update.task_loss(words))
    build_method(PRESETS[name]).loss(counted, 1.0)
    assert len(count) == passes


def test_freelb_climbs_nothing_but_the_task_s_loss() -> None:
    with pytest.raises(UsageError, match="it must be task-loss"):
        build_method(replace(PRESETS["freelb"], objective="divergence"))
