"""The adversary against naive references and against optima that can be written down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alum_fairseq import DIVERGENCES, PRESETS, Adversary, Preset, UsageError
from alum_fairseq.adversarial.divergences import get_divergence
from alum_fairseq.adversarial.gain import mean_size, random_like
from alum_fairseq.adversarial.norms import get_norm
from alum_fairseq.adversarial.objectives import DivergenceFromClean, Objective, TaskLoss
from alum_fairseq.adversarial.precision import default_noise_std
from alum_fairseq.adversarial.regularize import Regularize

BATCH, TOKENS, WIDTH, CLASSES = 2, 3, 4, 5
MASK = torch.tensor([[True, True, True], [True, True, False]])
LABELS = torch.tensor([3, 1])

Predict = Callable[[Tensor], Tensor]


def small_predict(dtype: torch.dtype = torch.float64) -> Predict:
    """A smooth model whose prediction depends on all tokens, padding included."""
    torch.manual_seed(3)
    mix = torch.randn(TOKENS, TOKENS, dtype=dtype)
    first = torch.randn(WIDTH, 6, dtype=dtype)
    second = torch.randn(6, CLASSES, dtype=dtype)
    return lambda e: torch.tanh((mix @ e) @ first).mean(1) @ second


def embeddings(dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(4)
    e = torch.randn(BATCH, TOKENS, WIDTH, dtype=dtype) * torch.tensor([[[0.5]], [[2.0]]])
    return e * MASK.unsqueeze(-1)


def divergence_of(
    predict: Predict, clean: Tensor, name: str = "kl", weights: Tensor | None = None
) -> DivergenceFromClean:
    return DivergenceFromClean(predict, clean, get_divergence(name), weights)


def task_loss_of(predict: Predict) -> TaskLoss:
    return TaskLoss(lambda e: nn.functional.cross_entropy(predict(e), LABELS, reduction="sum"))


# A naive Algorithm 1: Python numbers and loops, gradients by finite differences.


def naive_divergence(name: str, p: list[float], q: list[float]) -> float:
    def softmax(z: list[float]) -> list[float]:
        powers = [math.exp(v - max(z)) for v in z]
        return [v / sum(powers) for v in powers]

    if name == "squared_error":
        return sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
    p, q = softmax(p), softmax(q)

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))

    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return {
        "kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "symmetric_kl": lambda: kl(p, q) + kl(q, p),
        "jensen_shannon": lambda: kl(p, middle) / 2 + kl(q, middle) / 2,
        "squared_hellinger": lambda: 1 - sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)),
    }[name]()


def naive_task_loss(rows: list[list[float]]) -> float:
    return sum(
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(rows, LABELS.tolist(), strict=True)
    )


def naive_perturb(
    adversary: Adversary, what: str, predict: Predict, e: Tensor, noise: Tensor
) -> Tensor:
    """``noise`` is as the start's distribution has it, of size 1, ``B x T x D``.

    MASK says what is padding; ``what`` is climbed: a divergence, or "task-loss".
    """
    clean = predict(e).tolist()
    delta = torch.zeros_like(e)

    def objective(d: Tensor) -> float:
        rows = predict(e + d).tolist()
        if what == "task-loss":
            return naive_task_loss(rows)
        return sum(naive_divergence(what, row, c) for row, c in zip(rows, clean, strict=True))

    def norm_of(values: list[float]) -> float:
        if adversary.norm == "linf":
            return max(abs(v) for v in values)
        return math.sqrt(sum(v * v for v in values))

    def groups(b: int) -> list[list[tuple[int, int, int]]]:
        tokens = [[(b, t, d) for d in range(WIDTH)] for t in range(TOKENS) if MASK[b, t]]
        return tokens if adversary.norm_scope == "token" else [list(itertools.chain(*tokens))]

    def rms(b: int) -> float:
        values = [e[b, t, d].item() ** 2 for t in range(TOKENS) if MASK[b, t] for d in range(WIDTH)]
        return math.sqrt(sum(values) / len(values))

    def unit(b: int, group: list[tuple[int, int, int]]) -> float:
        if adversary.epsilon_mode == "absolute":
            return 1.0
        return rms(b) * (math.sqrt(len(group)) if adversary.norm == "l2" else 1.0)

    def start_size(b: int, group: list[tuple[int, int, int]]) -> float:
        if adversary.noise_std is None:
            return 0.01 * rms(b)
        if adversary.start == "normal":
            return adversary.noise_std * (1.0 if adversary.epsilon_mode == "absolute" else rms(b))
        # Half an edge of the cube in the ball of that radius.
        corner = math.sqrt(len(group)) if adversary.norm == "l2" else 1.0
        return adversary.noise_std * unit(b, group) / corner

    def project() -> None:
        if adversary.projection == "none":
            return
        for b in range(BATCH):
            for group in groups(b):
                radius = adversary.epsilon * unit(b, group)
                values = [delta[i].item() for i in group]
                if adversary.projection == "rescale":
                    factor = radius / (norm_of(values) + 1e-6 * unit(b, group))
                    values = [v * factor for v in values]
                elif adversary.norm == "linf":
                    values = [max(-radius, min(radius, v)) for v in values]
                elif norm_of(values) > radius:
                    factor = radius / norm_of(values)
                    values = [v * factor for v in values]
                for i, v in zip(group, values, strict=True):
                    delta[i] = v

    for b in range(BATCH):
        for group in groups(b):
            for i in group:
                delta[i] = 0 if adversary.start == "zero" else start_size(b, group) * noise[i]
    if adversary.steps == 0:
        project()
    for _ in range(adversary.steps):
        gradient = torch.zeros_like(delta)
        for b in range(BATCH):
            for i in itertools.chain(*groups(b)):
                h = 1e-3  # four points: exact to h^4
                for places, weight in ((1, 8 / 12), (2, -1 / 12)):
                    there, back = delta.clone(), delta.clone()
                    there[i] += places * h
                    back[i] -= places * h
                    gradient[i] += weight * (objective(there) - objective(back)) / h
        for b in range(BATCH):
            for group in groups(b):
                size = norm_of([gradient[i].item() for i in group])
                for i in group:
                    direction = gradient[i].item()
                    if adversary.gradient == "steepest" and adversary.norm == "linf":
                        direction = math.copysign(1, direction)
                    elif adversary.gradient != "raw":
                        direction /= size
                    if adversary.step_size == math.inf:
                        delta[i] = adversary.epsilon * unit(b, group) * direction
                    else:
                        delta[i] += adversary.step_size * unit(b, group) * direction
        project()
    return delta


def assert_equals_naive(adversary: Adversary, what: str = "kl") -> None:
    e, predict = embeddings(), small_predict()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(e.shape, dtype=e.dtype, generator=generator)
    if adversary.start == "uniform":
        generator.manual_seed(5)
        noise = 2 * torch.rand(e.shape, dtype=e.dtype, generator=generator) - 1
    generator.manual_seed(5)
    climbed = task_loss_of(predict)
    if what != "task-loss":
        climbed = divergence_of(predict, predict(e), what)
    delta = adversary.perturb(climbed, e, MASK, generator)
    expected = naive_perturb(adversary, what, predict, e, noise)
    scale = expected.abs().max().item()
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5 * scale)
    assert (delta[~MASK] == 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_equal_the_naive_algorithm(preset: str, steps: int) -> None:
    chosen = PRESETS[preset]
    what = "task-loss" if chosen.objective == "task-loss" else chosen.divergence
    assert_equals_naive(replace(chosen.adversary, steps=steps), what)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
@pytest.mark.parametrize("projection", ["clip", "rescale", "none"])
@pytest.mark.parametrize("gradient", ["raw", "normalized", "steepest"])
@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_every_combination_equals_the_naive_algorithm(
    norm: str, scope: str, projection: str, gradient: str, mode: str
) -> None:
    assert_equals_naive(
        Adversary(
            steps=2,
            epsilon=0.3,
            epsilon_mode=mode,
            step_size=0.25,
            noise_std=0.05,
            norm=norm,
            norm_scope=scope,
            gradient=gradient,
            projection=projection,
        )
    )


@pytest.mark.parametrize("start", ["normal", "uniform", "zero"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_every_start_equals_the_naive_algorithm(
    start: str, norm: str, scope: str, mode: str
) -> None:
    chosen = Adversary(
        start=start,
        noise_std=0.1,
        steps=2,
        step_size=0.25,
        epsilon=0.3,
        epsilon_mode=mode,
        norm=norm,
        norm_scope=scope,
    )
    assert_equals_naive(chosen, "task-loss")


@pytest.mark.parametrize("what", ["task-loss", *sorted(DIVERGENCES)])
def test_every_objective_equals_the_naive_algorithm(what: str) -> None:
    assert_equals_naive(Adversary(noise_std=0.05), what)


@pytest.mark.parametrize("start", ["normal", "uniform"])
@pytest.mark.parametrize("projection", ["clip", "rescale", "none"])
def test_without_steps_the_noise_is_projected(projection: str, start: str) -> None:
    assert_equals_naive(Adversary(start=start, steps=0, noise_std=0.2, projection=projection))


def test_without_steps_it_is_a_random_direction_on_the_surface() -> None:
    e = embeddings()

    def never(_: Tensor) -> Tensor:
        raise AssertionError("it needs no pass")

    adversary = Adversary(steps=0, epsilon=0.3, norm="linf", norm_scope="token")
    delta = adversary.perturb(divergence_of(never, e), e)
    rms = e.square().mean((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(
        adversary.ball.size(delta), (0.3 * rms).expand(BATCH, TOKENS, 1), rtol=1e-3, atol=0
    )
    assert not torch.equal(delta, adversary.perturb(divergence_of(never, e), e))


def test_a_first_gradient_that_is_known_is_not_computed_again() -> None:
    e, predict = embeddings(), small_predict()
    climbed, calls = task_loss_of(predict), []

    def counted(x: Tensor) -> Any:
        calls.append(x)
        return climbed(x)

    leaf = e.clone().requires_grad_()
    (known,) = torch.autograd.grad(climbed.loss(leaf), leaf)
    adversary = Adversary(start="zero", steps=3, step_size=0.01, projection="clip")
    expected = adversary.perturb(counted, e, MASK)
    assert len(calls) == 3
    assert torch.equal(calls[0].detach(), e)
    calls.clear()
    torch.testing.assert_close(adversary.perturb(counted, e, MASK, gradient=known), expected)
    assert len(calls) == 2


def test_the_task_loss_s_direction_is_that_of_its_gradient() -> None:
    e, predict = embeddings(), small_predict()
    leaf = e.clone().requires_grad_()
    (expected,) = torch.autograd.grad(task_loss_of(predict).loss(leaf), leaf)
    adversary = Adversary(
        start="zero",
        gradient="raw",
        projection="clip",
        epsilon=1e9,
        epsilon_mode="absolute",
        step_size=1.0,
    )
    for scale in (1.0, 2.0**10):
        climbed = TaskLoss(task_loss_of(predict).loss, scale)
        torch.testing.assert_close(adversary.perturb(climbed, e), expected)


# Optima that can be written down.


def test_finds_the_optimum_of_a_linear_model_in_the_infinity_norm() -> None:
    w = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    e = embeddings()
    predict = lambda x: (x * w).sum((1, 2))  # noqa: E731
    adversary = Adversary(
        steps=1,
        epsilon=0.1,
        epsilon_mode="absolute",
        step_size=1e6,
        norm="linf",
        norm_scope="sentence",
        projection="clip",
    )
    delta = adversary.perturb(divergence_of(predict, predict(e), "squared_error"), e)
    # max (w . delta)^2 over |delta| <= epsilon is (epsilon * |w|_1)^2, at epsilon * sign(w).
    reached = (predict(e + delta) - predict(e)) ** 2
    optimum = (0.1 * w.abs().sum()) ** 2
    assert reached.tolist() == pytest.approx([optimum.item()] * BATCH)


def test_finds_the_optimum_of_a_linear_model_in_the_euclidean_norm() -> None:
    w = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    e = embeddings()
    predict = lambda x: (x * w).sum((1, 2))  # noqa: E731
    adversary = Adversary(
        epsilon=0.1,
        epsilon_mode="absolute",
        step_size=1e6,
        norm="l2",
        norm_scope="sentence",
        projection="clip",
    )
    delta = adversary.perturb(divergence_of(predict, predict(e), "squared_error"), e)
    reached = (predict(e + delta) - predict(e)) ** 2
    optimum = (0.1 * torch.linalg.vector_norm(w)) ** 2
    assert reached.tolist() == pytest.approx([optimum.item()] * BATCH)


def test_steps_converge_to_the_leading_singular_vector() -> None:
    """For squared error of a linear map the ascent is the power method, whose limit is known."""
    a = torch.randn(TOKENS * WIDTH, 7, dtype=torch.float64)
    e = embeddings()
    predict = lambda x: x.flatten(1) @ a  # noqa: E731
    optimum = (0.1 * torch.linalg.matrix_norm(a, 2)).item() ** 2

    def reached(steps: int) -> list[float]:
        adversary = Adversary(
            steps=steps,
            epsilon=0.1,
            epsilon_mode="absolute",
            step_size=1e6,
            norm="l2",
            norm_scope="sentence",
        )
        delta = adversary.perturb(divergence_of(predict, predict(e), "squared_error"), e)
        return ((predict(e + delta) - predict(e)) ** 2).sum(-1).tolist()

    assert reached(100) == pytest.approx([optimum] * BATCH, rel=1e-4)
    assert max(reached(1)) < 0.99 * optimum


# What it leaves alone.


def test_gives_parameters_no_gradient_and_keeps_no_graph() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    e = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    predict = lambda x: model(x).mean(1)  # noqa: E731
    clean = predict(e)
    delta = Adversary(steps=3).perturb(divergence_of(predict, clean), e, MASK)
    assert not delta.requires_grad
    assert delta.grad_fn is None
    assert e.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    clean.sum().backward()  # the caller's own graph is still whole


def test_works_under_no_grad() -> None:
    e, predict = embeddings(), small_predict()
    for climbed in (divergence_of(predict, predict(e)), task_loss_of(predict)):
        torch.manual_seed(0)
        expected = Adversary().perturb(climbed, e, MASK)
        torch.manual_seed(0)
        with torch.no_grad():
            assert torch.equal(Adversary().perturb(climbed, e, MASK), expected)


def test_gradients_of_padding_never_matter() -> None:
    """Not even where they are not numbers."""
    predict = small_predict()
    e = embeddings()

    def poisoned(x: Tensor) -> Tensor:
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda g: g.masked_fill(~MASK.unsqueeze(-1), float("nan")))
        return predict(x)

    for adversary in (Adversary(steps=2), Adversary(norm="l2", norm_scope="sentence")):
        torch.manual_seed(0)
        expected = adversary.perturb(divergence_of(predict, predict(e)), e, MASK)
        torch.manual_seed(0)
        found = adversary.perturb(divergence_of(poisoned, predict(e)), e, MASK)
        assert torch.equal(found, expected)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that depends neither on the size of the batch nor on the type of its numbers."""

    def same(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(noise: Tensor, *bounds: float, **_: Any) -> Tensor:
            most = torch.empty(64, *noise.shape[1:], dtype=torch.float64)
            draw(most, *bounds, generator=torch.Generator().manual_seed(7))
            return noise.copy_(most[: len(noise)])

        return drawn

    monkeypatch.setattr(Tensor, "normal_", same(Tensor.normal_))
    monkeypatch.setattr(Tensor, "uniform_", same(Tensor.uniform_))


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_sentence_is_perturbed_as_if_it_were_alone(preset: str) -> None:
    """So that the size of the batch, and the rank it lies on, do not matter."""
    chosen, e, predict = PRESETS[preset], embeddings(), small_predict()

    def climbed(rows: int) -> Objective:
        if chosen.objective == "task-loss":
            labels, loss = LABELS[:rows], nn.functional.cross_entropy
            return TaskLoss(lambda e: loss(predict(e), labels, reduction="sum"))
        return divergence_of(predict, predict(e[:rows]), chosen.divergence)

    both = chosen.adversary.perturb(climbed(2), e, MASK)
    first = chosen.adversary.perturb(climbed(1), e[:1], MASK[:1])
    torch.testing.assert_close(both[:1], first)


@pytest.mark.parametrize("projection", ["clip", "rescale", "none"])
@pytest.mark.parametrize(("start", "steps"), [("normal", 1), ("uniform", 1), ("normal", 0)])
@pytest.mark.parametrize("scope", ["token", "sentence"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sentence_of_nothing_but_padding_stays_as_it_is(
    norm: str, scope: str, start: str, steps: int, projection: str
) -> None:
    """Its embeddings have no size that a relative radius could be a multiple of."""
    predict, e = small_predict(), embeddings()
    mask = torch.stack([MASK[0], torch.zeros_like(MASK[0])])
    e = e * mask.unsqueeze(-1)
    adversary = Adversary(
        start=start, steps=steps, norm=norm, norm_scope=scope, projection=projection
    )
    delta = adversary.perturb(divergence_of(predict, predict(e)), e, mask)
    assert delta[0].abs().amax() > 0
    assert torch.equal(delta[1], torch.zeros_like(delta[1]))


def test_weights_take_predictions_out_of_the_ascent() -> None:
    e, predict = embeddings(), small_predict()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    noiseless = {"noise_std": 1e-9, "projection": "clip"}
    climbed = divergence_of(predict, predict(e), weights=weights)
    delta = Adversary(**noiseless).perturb(climbed, e, MASK)
    assert delta[0].abs().max() > 0.01
    assert delta[1].abs().max() < 1e-6


# Half precision.


def underflowing_model(dtype: torch.dtype) -> tuple[Predict, Tensor]:
    """Gradients of about 1e-10, where the smallest float16 is 6e-8."""
    torch.manual_seed(6)
    w = torch.randn(TOKENS * WIDTH, CLASSES)
    e = torch.randn(BATCH, TOKENS, WIDTH).to(dtype)
    return (lambda x: 1e-4 * (x.flatten(1) @ w.to(x.dtype))), e


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradient_survives(dtype: torch.dtype) -> None:
    adversary = Adversary(noise_std=0.1, projection="clip", step_size=100.0)
    predict, e = underflowing_model(dtype)
    delta = adversary.perturb(divergence_of(predict, predict(e)), e)
    assert delta.dtype == torch.float32
    wide = e.double()
    wide = adversary.perturb(divergence_of(predict, predict(wide)), wide)
    agreement = nn.functional.cosine_similarity(delta.flatten().double(), wide.flatten(), dim=0)
    assert agreement > 0.8

    # The same without care: backward through half-precision logits gives nothing at all.
    if dtype == torch.float16:
        direct = (0.1 * torch.randn_like(e)).requires_grad_()
        p, q = predict(e + direct).float(), predict(e).float()
        kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()
        (gradient,) = torch.autograd.grad(kl, direct)
        assert (gradient == 0).float().mean() > 0.9


def test_a_gradient_that_is_not_finite_shows_in_the_perturbation() -> None:
    e = embeddings()
    predict = lambda x: small_predict()(x) / (x - x).sum((1, 2), keepdim=True)[..., 0]  # noqa: E731
    delta = Adversary().perturb(divergence_of(predict, small_predict()(e)), e, MASK)
    assert not torch.isfinite(delta[MASK]).all()


# The yardstick.


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
def test_random_direction_has_the_same_length_everywhere(norm: str, scope: str) -> None:
    adversary = Adversary(norm=norm, norm_scope=scope)
    e, predict = embeddings(), small_predict()
    delta = adversary.perturb(divergence_of(predict, predict(e)), e, MASK)
    other = random_like(adversary.ball, delta, MASK)
    dims = -1 if scope == "token" else (-2, -1)
    torch.testing.assert_close(other.norm(dim=dims), delta.norm(dim=dims))
    assert (other[~MASK] == 0).all()
    assert not torch.allclose(other, delta)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["gaussian", "signs", "sparse"])
def test_noise_of_every_kind_has_gain_1(kind: str, norm: str) -> None:
    """A model that is as sensitive in every direction tells no noise from another."""
    noise = torch.randn(BATCH, TOKENS, 50)
    delta = {"gaussian": noise, "signs": noise.sign(), "sparse": noise * (noise > 2)}[kind]
    other = random_like(get_norm(norm, "sentence"), delta)
    gain = delta.square().sum() / other.square().sum()
    assert gain.item() == pytest.approx(1)


def test_mean_size_leaves_padding_out() -> None:
    delta = torch.zeros(BATCH, TOKENS, WIDTH)
    delta[MASK] = 0.5
    for norm, expected in (("linf", 0.5), ("l2", 1.0)):
        found = mean_size(get_norm(norm, "token"), delta, MASK)
        assert found.item() == pytest.approx(expected)
    expected = (math.sqrt(12 * 0.25) + math.sqrt(8 * 0.25)) / 2
    found = mean_size(get_norm("l2", "sentence"), delta, MASK)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
def test_relative_epsilon_scales_with_the_embeddings(norm: str, scope: str) -> None:
    adversary = Adversary(norm=norm, norm_scope=scope)
    e, predict = embeddings(), small_predict()
    for factor in (1e-3, 1e3):
        scaled = lambda x, factor=factor: predict(x / factor)  # noqa: E731
        torch.manual_seed(0)
        expected = adversary.perturb(divergence_of(predict, predict(e)), e, MASK)
        torch.manual_seed(0)
        delta = adversary.perturb(divergence_of(scaled, predict(e)), factor * e, MASK)
        torch.testing.assert_close(delta / factor, expected)


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1: it must be a whole number"),
        ({"steps": 1.5}, "steps is 1.5: it must be a whole number"),
        ({"steps": True}, "steps is True: it must be a whole number"),
        ({"epsilon": 0}, "epsilon is 0: it must be a finite number above 0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"step_size": -0.1}, "step_size is -0.1: it must be a number above 0"),
        ({"step_size": math.nan}, "step_size is nan"),
        ({"noise_std": -1}, "noise_std is -1: it must be a finite number, 0 or more"),
        ({"noise_std": math.inf}, "noise_std is inf"),
        ({"norm": "l7"}, "norm is 'l7': it must be one of linf, l2"),
        ({"norm_scope": "batch"}, "norm_scope is 'batch': it must be one of token, sentence"),
        ({"epsilon_mode": "x"}, "epsilon_mode is 'x': it must be one of absolute, relative"),
        ({"gradient": "sign"}, "gradient is 'sign': it must be one of raw, normalized, steepest"),
        ({"start": "cauchy"}, "start is 'cauchy': it must be one of normal, uniform, zero"),
        ({"projection": "x"}, "projection is 'x': it must be one of clip, rescale, none"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Adversary(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "js"}, "divergence is 'js': it must be one of kl, "),
        ({"objective": "loss"}, "objective is 'loss': it must be one of divergence, task-loss"),
        ({"sides": "clean"}, "sides is 'clean': it must be one of both, adversarial"),
        ({"dropout": "both"}, "dropout is 'both': it must be one of shared, independent"),
        ({"site": "-1"}, "site is '-1': it must be words, embeddings, or the number of a layer"),
        ({"proximal": -1.0}, "proximal is -1.0: it must be 0 (off) or more"),
        ({"proximal": math.inf}, "proximal is inf: it must be 0 (off) or more"),
        ({"pretraining_alpha": -1.0}, "alpha is -1.0: it must be 0 (off) or more"),
        ({"finetuning_alpha": math.nan}, "alpha is nan: it must be 0 (off) or more"),
    ],
)
def test_bad_numbers_of_a_method_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Preset(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_std": 0}, "noise_std is 0: it must be above 0 when steps is"),
        ({"start": "zero"}, "start is zero: it must be normal or uniform when steps is above 0"),
    ],
)
def test_an_ascent_that_could_not_leave_the_start_is_refused(
    options: dict[str, Any], message: str
) -> None:
    preset = Preset(adversary=Adversary(**options))
    with pytest.raises(UsageError) as error:
        Regularize(preset)
    assert message in str(error.value)
    Regularize(replace(preset, objective="task-loss"))  # which has a gradient there


def test_no_noise_is_fine_without_steps() -> None:
    e, predict = embeddings(), small_predict()
    adversary = Adversary(steps=0, noise_std=0)
    Regularize(Preset(adversary=adversary))
    delta = adversary.perturb(divergence_of(predict, predict(e)), e, MASK)
    assert (delta == 0).all()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, 0.01), (torch.float16, 0.01), (torch.bfloat16, 4 / 128)],
)
def test_the_start_is_above_the_rounding_of_the_type(dtype: torch.dtype, expected: float) -> None:
    e = torch.randn(2, 3, 64).to(dtype)
    assert default_noise_std(e) == pytest.approx(expected)
    moved = e + (expected * torch.randn(e.shape)).to(dtype)
    assert (moved != e).float().mean() > 0.9
    with torch.autocast("cpu", torch.bfloat16):
        assert default_noise_std(e.float()) == pytest.approx(4 / 128)


def test_shapes_are_checked() -> None:
    e, predict = embeddings(), small_predict()
    with pytest.raises(UsageError, match=r"shape \(3, 4\)"):
        Adversary().perturb(divergence_of(predict, predict(e)), e[0])
    with pytest.raises(UsageError, match=r"torch\.int64"):
        Adversary().perturb(divergence_of(predict, predict(e)), e.long())
    with pytest.raises(UsageError, match=r"mask has shape \(3, 2\): it must be \(2, 3\)"):
        Adversary().perturb(divergence_of(predict, predict(e)), e, MASK.T)


def test_a_model_that_ignores_its_input_is_found_out() -> None:
    e, predict = embeddings(), small_predict()
    constant = predict(e)
    with pytest.raises(UsageError, match="do not depend on"):
        Adversary().perturb(divergence_of(lambda x: constant, constant), e)
    weights = torch.randn(BATCH, CLASSES, requires_grad=True)
    with pytest.raises(UsageError, match="do not depend on"):
        Adversary().perturb(divergence_of(lambda x: 2 * weights, constant), e)
