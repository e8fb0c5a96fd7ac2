"""Random numbers are drawn again, on the device in use alone."""

from __future__ import annotations

import pytest
import torch
from support.method_cases import engine, make_case

from alum_fairseq.encoder.random_state import random_state


def test_the_numbers_are_drawn_again() -> None:
    draw_again = random_state(torch.device("cpu"))
    first = torch.rand(3)
    assert not torch.equal(torch.rand(3), first)
    draw_again()
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_training_on_the_cpu_leaves_a_gpu_alone(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("the GPU was started")

    expected = engine(make_case("classification"), "calibrated", alum_memory=memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", started)
    got = engine(make_case("classification"), "calibrated", alum_memory=memory)
    assert torch.equal(got["loss"], expected["loss"])
