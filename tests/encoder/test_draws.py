"""Random numbers that are kept are those that would have been drawn again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Counting
from torch import Tensor

from alum_fairseq.encoder.draws import Draws


def noisy(x: Tensor) -> Tensor:
    x = torch.dropout(x, 0.3, train=True) + torch.empty_like(x).uniform_(-1, 1)
    return torch.nn.functional.dropout(x, 0.5) + torch.empty(1).normal_(2.0, 0.1)


def test_a_pass_is_repeated_without_drawing() -> None:
    x, draws = torch.ones(40, 50, requires_grad=True), Draws()
    with draws.recording():
        first = noisy(x)
    (wanted,) = torch.autograd.grad(first.sum(), x)
    for _ in range(2):
        with Counting() as counting, draws.replaying():
            draws.go_to(0)
            again = noisy(x)
        assert counting.drawn == 0
        assert torch.equal(again, first)
        assert torch.equal(torch.autograd.grad(again.sum(), x)[0], wanted)


def test_recording_draws_what_is_drawn_without() -> None:
    torch.manual_seed(3)
    wanted = noisy(torch.ones(5, 6))
    torch.manual_seed(3)
    with Draws().recording():
        assert torch.equal(noisy(torch.ones(5, 6)), wanted)


def test_it_goes_on_from_any_place() -> None:
    draws, x = Draws(), torch.ones(30)
    with draws.recording():
        torch.dropout(x, 0.5, train=True)
        place = draws.count
        second = torch.dropout(x, 0.5, train=True)
    with draws.replaying():
        draws.go_to(place)
        assert torch.equal(torch.dropout(x, 0.5, train=True), second)


def test_a_mask_serves_every_type() -> None:
    draws, x = Draws(), torch.ones(300)
    with draws.recording():
        first = torch.dropout(x, 0.5, train=True)
    with draws.replaying():
        draws.go_to(0)
        assert torch.equal(torch.dropout(x.bfloat16(), 0.5, train=True).float(), first)


@pytest.mark.parametrize(
    "other",
    [
        lambda: torch.empty(4).uniform_(),  # another kind
        lambda: torch.dropout(torch.ones(5), 0.5, train=True),  # another shape
        lambda: [torch.dropout(torch.ones(4), 0.5, train=True) for _ in range(2)],  # one more
    ],
)
def test_another_pass_is_refused(other: Callable[[], Any]) -> None:
    draws = Draws()
    with draws.recording():
        torch.dropout(torch.ones(4), 0.5, train=True)
    with (
        draws.replaying(),
        pytest.raises(RuntimeError, match=r"a pass drew aten.* where the recorded"),
    ):
        draws.go_to(0)
        other()


def test_samples_of_a_distribution_cannot_be_repeated() -> None:
    draws = Draws()
    with draws.recording():
        torch.dropout(torch.ones(4), 0.5, train=True)
        assert draws.complete
        torch.multinomial(torch.ones(4), 2)  # depends on the numbers in a tensor
    assert not draws.complete
