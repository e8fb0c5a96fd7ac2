"""Divergences against SciPy, and what the regulariser makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from alum_fairseq import DIVERGENCES, Divergence, UsageError
from alum_fairseq.adversarial.divergences import get_divergence

NAMES = sorted(DIVERGENCES)
DISTRIBUTIONS = [name for name in NAMES if name != "squared_error"]


def logits(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(*shape, dtype=dtype), 3 * torch.randn(*shape, dtype=dtype)


def by_scipy(name: str, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    if name == "squared_error":
        return (p - q) ** 2
    p, q = softmax(p, axis=-1), softmax(q, axis=-1)
    return {
        "kl": lambda: rel_entr(p, q).sum(-1),
        "reverse_kl": lambda: rel_entr(q, p).sum(-1),
        "symmetric_kl": lambda: rel_entr(p, q).sum(-1) + rel_entr(q, p).sum(-1),
        "jensen_shannon": lambda: jensenshannon(p, q, axis=-1) ** 2,
        "squared_hellinger": lambda: 1 - np.sqrt(p * q).sum(-1),
    }[name]()


@pytest.mark.parametrize("name", NAMES)
def test_equals_scipy(name: str) -> None:
    p, q = logits(5, 3, 7)
    ours = DIVERGENCES[name].function(p, q).numpy()
    np.testing.assert_allclose(ours, by_scipy(name, p.numpy(), q.numpy()), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_zero_only_where_equal_and_symmetric_as_declared(name: str) -> None:
    p, q = logits(50, 4)
    divergence = DIVERGENCES[name]
    assert divergence.function(p, p).abs().max() < 1e-15
    assert (divergence.function(p, q) > 0).all()
    symmetric = torch.allclose(divergence.function(p, q), divergence.function(q, p))
    assert symmetric == divergence.symmetric


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    p, q = (x.to(dtype) for x in logits(20, 1000))
    got = DIVERGENCES[name].function(p, q)
    assert got.dtype == torch.float32
    wide = DIVERGENCES[name].function(p.double(), q.double())
    torch.testing.assert_close(got.double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite_with_finite_gradients(name: str) -> None:
    p = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    q = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    value = DIVERGENCES[name].function(p, q).sum()
    value.backward()
    for tensor in (value, p.grad, q.grad):
        assert torch.isfinite(tensor).all()


def test_consistency_of_an_asymmetric_divergence_stops_the_gradient_of_the_target() -> None:
    a, c = (x.requires_grad_() for x in logits(6, 5))
    DIVERGENCES["kl"].consistency(a, c).backward()
    expected_a, expected_c = a.detach().requires_grad_(), c.detach().requires_grad_()
    pa, pc = expected_a.softmax(-1), expected_c.softmax(-1)
    forward = (pa * (pa.log() - pc.detach().log())).sum()
    backward = (pc * (pc.log() - pa.detach().log())).sum()
    (forward + backward).backward()
    torch.testing.assert_close(a.grad, expected_a.grad)
    torch.testing.assert_close(c.grad, expected_c.grad)


@pytest.mark.parametrize("name", [n for n in NAMES if DIVERGENCES[n].symmetric])
def test_consistency_of_a_symmetric_divergence_is_one_term_into_both_sides(name: str) -> None:
    a, c = (x.requires_grad_() for x in logits(6, 5))
    divergence = DIVERGENCES[name]
    value = divergence.consistency(a, c)
    assert value == divergence.function(a, c).sum()
    value.backward()
    assert a.grad.abs().sum() > 0
    assert c.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_weights_leave_predictions_out(name: str) -> None:
    a, c = logits(6) if name == "squared_error" else logits(6, 5)
    weights = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64)
    kept = weights.bool()
    divergence = DIVERGENCES[name]
    torch.testing.assert_close(
        divergence.consistency(a, c, weights), divergence.consistency(a[kept], c[kept])
    )


def test_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'wasserstein'.*kl, "):
        get_divergence("wasserstein")


# A few rows at a time.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_in_pieces_values_and_gradients_are_those_of_the_whole(
    name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd on the plain formula, in float64; three rows make a piece."""
    monkeypatch.setattr("alum_fairseq.adversarial.divergences._AT_A_TIME", {"cpu": 3 * 2 * 7})
    divergence = DIVERGENCES[name]
    p, q = (x.requires_grad_() for x in logits(8, 2, 7))
    shape = (8, 2, 7) if name == "squared_error" else (8, 2)
    weights = torch.rand(shape, dtype=torch.float64) if weighted else None

    def plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        values = divergence.function(a, b)
        return (values if weights is None else values * weights).sum()

    assert len(list(divergence._pieces(p))) == 3
    torch.testing.assert_close(divergence.total(p, q, weights), plain(p, q))
    expected = torch.autograd.grad(plain(p, q), (p, q))
    found = torch.autograd.grad(5 * divergence.total(p, q, weights), (p, q))
    torch.testing.assert_close(found, tuple(5 * g for g in expected))
    torch.testing.assert_close(divergence.gradient(p, q, weights), expected[0])

    both = plain(p, q) if divergence.symmetric else plain(p, q.detach()) + plain(q, p.detach())
    expected = torch.autograd.grad(both, (p, q))
    regularizer = divergence.consistency(p, q, weights)
    torch.testing.assert_close(regularizer, both)
    torch.testing.assert_close(torch.autograd.grad(regularizer, (p, q)), expected)
    # Either side's gradient stays what it is when the other's is not asked for.
    for side, gradient in enumerate(expected):
        one = [x if i == side else x.detach() for i, x in enumerate((p, q))]
        (alone,) = torch.autograd.grad(divergence.consistency(*one, weights), one[side])
        torch.testing.assert_close(alone, gradient)


def test_the_presets_divergence_does_without_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are written out; what they are, the tests of all divergences say."""
    monkeypatch.setattr("alum_fairseq.adversarial.divergences._by_autograd", None)
    p, q = (x.requires_grad_() for x in logits(3, 4))
    DIVERGENCES["kl"].total(p, q).backward()
    DIVERGENCES["kl"].consistency(p, q).backward()
    DIVERGENCES["kl"].gradient(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    p, q = (x.requires_grad_() for x in logits(3, 4))
    torch.autograd.gradcheck(DIVERGENCES[name].total, (p, q))


def test_only_the_logits_are_kept_for_the_backward_pass() -> None:
    """Written plainly, the regulariser keeps a handful of tensors of this size."""
    p, q = (x.requires_grad_() for x in logits(64, 500))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        DIVERGENCES["kl"].consistency(p, q)
    assert set(kept) == {p.untyped_storage().data_ptr(), q.untyped_storage().data_ptr()}


def test_no_predictions_make_zero() -> None:
    p, q = (x.requires_grad_() for x in logits(0, 7))
    total = DIVERGENCES["kl"].consistency(p, q)
    total.backward()
    assert total == 0
    assert p.grad.shape == q.grad.shape == (0, 7)
    assert DIVERGENCES["kl"].gradient(p, q).shape == (0, 7)


@pytest.mark.parametrize("function", [lambda p, q: (p - q).square().mean(), lambda p, q: p[:, :2]])
def test_a_divergence_of_another_shape_is_refused(function: Any) -> None:
    logits = torch.randn(3, 5)
    with pytest.raises(UsageError, match=r"shape \(3, 5\): it must give one number for each"):
        Divergence(function, symmetric=True).total(logits, logits)
