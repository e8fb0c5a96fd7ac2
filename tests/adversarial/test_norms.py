"""Norms and projections against their definitions, on random input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alum_fairseq import UsageError
from alum_fairseq.adversarial.norms import (
    NORMS,
    RESCALE_FLOOR,
    SCOPES,
    Norm,
    get_norm,
    root_mean_square,
)

ORDER = {"linf": float("inf"), "l2": 2.0}

cases = given(
    name=st.sampled_from(sorted(NORMS)),
    scope=st.sampled_from(sorted(SCOPES)),
    seed=st.integers(0, 2**31),
    exponent=st.floats(-6, 6),
    radius=st.floats(1e-3, 1e3),
)


def vectors(norm: Norm, x: Tensor) -> list[Tensor]:
    """The vectors that the norm is taken of, one by one."""
    sentences = list(x)
    if norm.scope == "sentence":
        return [sentence.flatten() for sentence in sentences]
    return [token for sentence in sentences for token in sentence]


def draw(seed: int, exponent: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 10**exponent * torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)


@settings(deadline=None, max_examples=100)
@cases
def test_size_is_the_norm(name: str, scope: str, seed: int, exponent: float, radius: float) -> None:
    norm, x = get_norm(name, scope), draw(seed, exponent)
    expected = [torch.linalg.vector_norm(v, ORDER[name]).item() for v in vectors(norm, x)]
    assert norm.size(x).flatten().tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=200)
@cases
def test_clip_is_the_projection_onto_the_ball(
    name: str, scope: str, seed: int, exponent: float, radius: float
) -> None:
    norm, x = get_norm(name, scope), draw(seed, exponent)
    r = torch.full((2, 1, 1), radius, dtype=torch.float64)
    projected = norm.clip(x, r)
    others = norm.clip(draw(seed + 1, exponent), r)
    for v, p, y in zip(*(vectors(norm, t) for t in (x, projected, others)), strict=True):
        size = torch.linalg.vector_norm(v, ORDER[name])
        assert torch.linalg.vector_norm(p, ORDER[name]) <= radius * (1 + 1e-9)
        if size <= radius:
            assert torch.equal(v, p)
        # The projection onto a convex set is the one point with this property for every other.
        assert torch.dot(v - p, y - p) <= 1e-9 * (1 + size**2 + radius**2)


@settings(deadline=None, max_examples=100)
@cases
def test_rescale_keeps_the_direction_and_reaches_the_surface(
    name: str, scope: str, seed: int, exponent: float, radius: float
) -> None:
    norm, x = get_norm(name, scope), draw(seed, exponent)
    r = torch.full((2, 1, 1), radius, dtype=torch.float64)
    floor = torch.full_like(r, RESCALE_FLOOR)
    for v, p in zip(vectors(norm, x), vectors(norm, norm.rescale(x, r, floor)), strict=True):
        size = torch.linalg.vector_norm(v, ORDER[name])
        expected = radius * size / (size + RESCALE_FLOOR)
        assert torch.linalg.vector_norm(p, ORDER[name]).item() == pytest.approx(expected.item())
        assert torch.nn.functional.cosine_similarity(v, p, dim=0).item() == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@cases
def test_normalize_gives_unit_vectors(
    name: str, scope: str, seed: int, exponent: float, radius: float
) -> None:
    norm, x = get_norm(name, scope), draw(seed, exponent)
    x[0] = 0
    sizes = norm.size(norm.normalize(x))
    assert sizes[0].abs().max() == 0
    assert sizes[1].flatten().tolist() == pytest.approx([1] * sizes[1].numel())


@pytest.mark.parametrize("value", [1e-30, 1e30])
@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_l2_of_tiny_and_huge_gradients_neither_underflows_nor_overflows(
    scope: str, value: float
) -> None:
    x = torch.full((1, 2, 8), value)
    unit = get_norm("l2", scope).normalize(x)
    count = 8 if scope == "token" else 16
    assert unit.flatten().tolist() == pytest.approx([count**-0.5] * 16)


@pytest.mark.parametrize(("name", "scope"), [("l3", "token"), ("l2", "batch")])
def test_unknown_names_are_refused(name: str, scope: str) -> None:
    with pytest.raises(UsageError, match="it must be one of"):
        get_norm(name, scope)


@settings(deadline=None, max_examples=100)
@cases
def test_steepest_is_the_way_of_size_1_that_rises_most(
    name: str, scope: str, seed: int, exponent: float, radius: float
) -> None:
    norm, gradient = get_norm(name, scope), draw(seed, exponent)
    dual = {"linf": 1.0, "l2": 2.0}[name]
    others = norm.normalize(draw(seed + 1, 0))
    steepest = norm.steepest(gradient)
    for g, way, other in zip(
        *(vectors(norm, t) for t in (gradient, steepest, others)), strict=True
    ):
        assert torch.linalg.vector_norm(way, ORDER[name]).item() == pytest.approx(1)
        rise = torch.dot(way, g)
        assert rise.item() == pytest.approx(torch.linalg.vector_norm(g, dual).item())
        assert rise >= torch.dot(other, g)
    assert (norm.steepest(torch.zeros(2, 3, 5)) == 0).all()


def test_root_mean_square_is_that_of_the_tokens() -> None:
    embeddings = torch.tensor([[[3.0, 4.0], [0.0, 5.0], [9.0, 9.0]], [[1.0, 7.0]] * 3])
    keep = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).unsqueeze(-1)
    found = root_mean_square(embeddings.half(), keep.double())
    assert found.shape == (2, 1, 1)
    assert found.dtype == torch.float64
    assert found.flatten().tolist() == pytest.approx([(50 / 4) ** 0.5, 0])  # no token: 0
