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

from alum_fairseq import PRESETS, Adversary, UsageError

BATCH, TOKENS, WIDTH, CLASSES = 2, 3, 4, 5
MASK = torch.tensor([[True, True, True], [True, True, False]])

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


# A naive Algorithm 1: Python numbers and loops, gradients by central differences.


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
        "symmetric_kl": lambda: kl(p, q) + kl(q, p),
        "jensen_shannon": lambda: kl(p, middle) / 2 + kl(q, middle) / 2,
        "squared_hellinger": lambda: 1 - sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)),
    }[name]()


def naive_perturb(adversary: Adversary, predict: Predict, e: Tensor, noise: Tensor) -> Tensor:
    """``noise`` is standard normal, ``B x T x D``; MASK says what is padding."""
    clean = predict(e).tolist()
    delta = torch.zeros_like(e)

    def divergence(d: Tensor) -> float:
        rows = predict(e + d).tolist()
        return sum(
            naive_divergence(adversary.divergence, row, c)
            for row, c in zip(rows, clean, strict=True)
        )

    def norm_of(values: list[float]) -> float:
        if adversary.norm == "linf":
            return max(abs(v) for v in values)
        return math.sqrt(sum(v * v for v in values))

    def groups(b: int) -> list[list[tuple[int, int, int]]]:
        tokens = [[(b, t, d) for d in range(WIDTH)] for t in range(TOKENS) if MASK[b, t]]
        return tokens if adversary.norm_scope == "token" else [list(itertools.chain(*tokens))]

    def rms(b: int) -> float:
        if adversary.epsilon_mode == "absolute":
            return 1.0
        values = [e[b, t, d].item() ** 2 for t in range(TOKENS) if MASK[b, t] for d in range(WIDTH)]
        return math.sqrt(sum(values) / len(values))

    def unit(b: int, group: list[tuple[int, int, int]]) -> float:
        if adversary.epsilon_mode == "absolute":
            return 1.0
        return rms(b) * (math.sqrt(len(group)) if adversary.norm == "l2" else 1.0)

    def project() -> None:
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
                delta[i] = adversary.start_std(e) * rms(b) * noise[i]
    if adversary.steps == 0:
        project()
    for _ in range(adversary.steps):
        gradient = torch.zeros_like(delta)
        for b in range(BATCH):
            for i in itertools.chain(*groups(b)):
                h = 1e-5
                there, back = delta.clone(), delta.clone()
                there[i] += h
                back[i] -= h
                gradient[i] = (divergence(there) - divergence(back)) / (2 * h)
        for b in range(BATCH):
            for group in groups(b):
                size = norm_of([gradient[i].item() for i in group])
                for i in group:
                    direction = gradient[i].item()
                    if adversary.gradient == "steepest" and adversary.norm == "linf":
                        direction = math.copysign(1, direction)
                    elif adversary.gradient != "raw":
                        direction /= size
                    delta[i] += adversary.step_size * unit(b, group) * direction
        project()
    return delta


def assert_equals_naive(adversary: Adversary) -> None:
    e, predict = embeddings(), small_predict()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(e.shape, dtype=e.dtype, generator=generator)
    generator.manual_seed(5)
    delta = adversary.perturb(predict, e, predict(e), MASK, generator=generator)
    expected = naive_perturb(adversary, predict, e, noise)
    scale = expected.abs().max().item()
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5 * scale)
    assert (delta[~MASK] == 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_equal_the_naive_algorithm(preset: str, steps: int) -> None:
    assert_equals_naive(replace(PRESETS[preset].adversary, steps=steps))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
@pytest.mark.parametrize("projection", ["clip", "rescale"])
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


@pytest.mark.parametrize(
    "divergence", ["symmetric_kl", "jensen_shannon", "squared_hellinger", "squared_error"]
)
def test_every_divergence_equals_the_naive_algorithm(divergence: str) -> None:
    assert_equals_naive(Adversary(divergence=divergence, noise_std=0.05))


@pytest.mark.parametrize("projection", ["clip", "rescale"])
def test_without_steps_the_noise_is_projected(projection: str) -> None:
    assert_equals_naive(Adversary(steps=0, noise_std=0.2, projection=projection))


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
        divergence="squared_error",
    )
    delta = adversary.perturb(predict, e, predict(e))
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
        divergence="squared_error",
    )
    delta = adversary.perturb(predict, e, predict(e))
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
            divergence="squared_error",
        )
        delta = adversary.perturb(predict, e, predict(e))
        return ((predict(e + delta) - predict(e)) ** 2).sum(-1).tolist()

    assert reached(100) == pytest.approx([optimum] * BATCH, rel=1e-4)
    assert max(reached(1)) < 0.99 * optimum


# What it leaves alone.


def test_gives_parameters_no_gradient_and_keeps_no_graph() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    e = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    predict = lambda x: model(x).mean(1)  # noqa: E731
    clean = predict(e)
    delta = Adversary(steps=3).perturb(predict, e, clean, MASK)
    assert not delta.requires_grad
    assert delta.grad_fn is None
    assert e.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    clean.sum().backward()  # the caller's own graph is still whole


def test_works_under_no_grad() -> None:
    e, predict = embeddings(), small_predict()
    torch.manual_seed(0)
    expected = Adversary().perturb(predict, e, predict(e), MASK)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(Adversary().perturb(predict, e, predict(e), MASK), expected)


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
        expected = adversary.perturb(predict, e, predict(e), MASK)
        torch.manual_seed(0)
        assert torch.equal(adversary.perturb(poisoned, e, predict(e), MASK), expected)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that depends neither on the size of the batch nor on the type of its numbers."""

    def normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.Generator().manual_seed(7)
        noise = torch.randn(64, *like.shape[1:], dtype=torch.float64, generator=drawn)
        return noise[: len(like)].to(like.dtype)

    monkeypatch.setattr("alum_fairseq.adversarial.adversary._normal_like", normal_like)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_sentence_is_perturbed_as_if_it_were_alone(preset: str) -> None:
    """So that the size of the batch, and the rank it lies on, do not matter."""
    adversary = PRESETS[preset].adversary
    e, predict = embeddings(), small_predict()
    both = adversary.perturb(predict, e, predict(e), MASK)
    first = adversary.perturb(predict, e[:1], predict(e[:1]), MASK[:1])
    torch.testing.assert_close(both[:1], first)


@pytest.mark.parametrize("ascent", ["power", "sampled-label", "random"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sentence_of_nothing_but_padding_stays_as_it_is(
    norm: str, scope: str, ascent: str
) -> None:
    """Its embeddings have no size that a relative radius could be a multiple of."""
    predict, e = small_predict(), embeddings()
    mask = torch.stack([MASK[0], torch.zeros_like(MASK[0])])
    e = e * mask.unsqueeze(-1)
    adversary = Adversary(norm=norm, norm_scope=scope, ascent=ascent)
    delta = adversary.perturb(predict, e, predict(e), mask)
    assert delta[0].abs().amax() > 0
    assert torch.equal(delta[1], torch.zeros_like(delta[1]))


def test_weights_take_predictions_out_of_the_ascent() -> None:
    e, predict = embeddings(), small_predict()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    noiseless = {"noise_std": 1e-9, "projection": "clip"}
    delta = Adversary(**noiseless).perturb(predict, e, predict(e), MASK, weights)
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
    delta = adversary.perturb(predict, e, predict(e))
    assert delta.dtype == torch.float32
    wide = adversary.perturb(predict, e.double(), predict(e.double()))
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
    delta = Adversary().perturb(predict, e, small_predict()(e), MASK)
    assert not torch.isfinite(delta[MASK]).all()


# The yardstick.


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
def test_random_direction_has_the_same_length_everywhere(norm: str, scope: str) -> None:
    adversary = Adversary(norm=norm, norm_scope=scope)
    e, predict = embeddings(), small_predict()
    delta = adversary.perturb(predict, e, predict(e), MASK)
    other = adversary.random_like(delta, MASK)
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
    other = Adversary(norm=norm).random_like(delta)
    gain = delta.square().sum() / other.square().sum()
    assert gain.item() == pytest.approx(1)


def test_mean_size_leaves_padding_out() -> None:
    delta = torch.zeros(BATCH, TOKENS, WIDTH)
    delta[MASK] = 0.5
    for norm, expected in (("linf", 0.5), ("l2", 1.0)):
        found = Adversary(norm=norm, norm_scope="token").mean_size(delta, MASK)
        assert found.item() == pytest.approx(expected)
    sentence = Adversary(norm="l2", norm_scope="sentence")
    expected = (math.sqrt(12 * 0.25) + math.sqrt(8 * 0.25)) / 2
    assert sentence.mean_size(delta, MASK).item() == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scope", ["token", "sentence"])
def test_relative_epsilon_scales_with_the_embeddings(norm: str, scope: str) -> None:
    adversary = Adversary(norm=norm, norm_scope=scope)
    e, predict = embeddings(), small_predict()
    for factor in (1e-3, 1e3):
        scaled = lambda x, factor=factor: predict(x / factor)  # noqa: E731
        torch.manual_seed(0)
        expected = adversary.perturb(predict, e, predict(e), MASK)
        torch.manual_seed(0)
        delta = adversary.perturb(scaled, factor * e, predict(e), MASK)
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
        ({"step_size": -0.1}, "step_size is -0.1: it must be a finite number above 0"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"noise_std": -1}, "noise_std is -1: it must be a finite number, 0 or more"),
        ({"noise_std": 0}, "noise_std is 0: it must be above 0 when steps is"),
        ({"norm": "l7"}, "norm 'l7' is unknown: choose one of linf, l2"),
        ({"norm_scope": "batch"}, "norm scope 'batch' is unknown"),
        ({"epsilon_mode": "x"}, "epsilon_mode is 'x': it must be one of absolute, relative"),
        ({"gradient": "sign"}, "gradient is 'sign': it must be one of raw, normalized, steepest"),
        ({"ascent": "fgsm"}, "ascent is 'fgsm': it must be one of power, sampled-label"),
        ({"projection": "none"}, "projection is 'none': it must be one of clip, rescale"),
        ({"divergence": "js"}, "divergence 'js' is unknown"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Adversary(**options)
    assert message in str(error.value)


def test_no_noise_is_fine_without_steps() -> None:
    e, predict = embeddings(), small_predict()
    delta = Adversary(steps=0, noise_std=0).perturb(predict, e, predict(e), MASK)
    assert (delta == 0).all()


def test_shapes_are_checked() -> None:
    e, predict = embeddings(), small_predict()
    with pytest.raises(UsageError, match=r"shape \(3, 4\)"):
        Adversary().perturb(predict, e[0], predict(e))
    with pytest.raises(UsageError, match=r"torch\.int64"):
        Adversary().perturb(predict, e.long(), predict(e))
    with pytest.raises(UsageError, match=r"mask has shape \(3, 2\): it must be \(2, 3\)"):
        Adversary().perturb(predict, e, predict(e), MASK.T)


def test_a_model_that_ignores_its_input_is_found_out() -> None:
    e, predict = embeddings(), small_predict()
    constant = predict(e)
    with pytest.raises(UsageError, match="do not depend on"):
        Adversary().perturb(lambda x: constant, e, constant)
    weights = torch.randn(BATCH, CLASSES, requires_grad=True)
    with pytest.raises(UsageError, match="do not depend on"):
        Adversary().perturb(lambda x: 2 * weights, e, constant)
