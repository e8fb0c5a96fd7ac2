"""Half precision on a CPU: methods that take gradients before the backward pass, and SMART."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from support.method_cases import SEED, Case, make_case
from support.quick_train import mlm_options
from torch import Tensor, nn

from alum_fairseq.adversarial.methods import METHODS
from alum_fairseq.adversarial.presets import PRESETS
from alum_fairseq.tasks.loss_scale import loss_scale_of

# SMART's perturbation of 1e-5 is rounded away in half precision.
NAMES: dict[str, dict[str, Any]] = {
    "fgm": {"alum_alpha": 2.0},
    "pgd": {"alum_alpha": 2.0},
    "freelb": {},
    "smart": {
        **{"alum_alpha": 2.0, "alum_epsilon": 0.3, "alum_step_size": 0.2, "alum_noise_std": 0.05},
        "alum_proximal": 1.0,
    },
}
ACCUMULATING = [name for name in NAMES if METHODS[PRESETS[name].method].accumulates]


def narrow(case: Case) -> Case:
    """In float16, model and momentum model."""
    other = copy.copy(case)
    other.model, other.momentum = (copy.deepcopy(m).half() for m in (case.model, case.momentum))
    return other


def single(kind: str, **options: Any) -> Case:
    case = make_case(kind, **options)
    case.model.float(), case.momentum.float()
    return case


def gradient(case: Case, name: str, announced: float = 1.0, scale: float = 1.0) -> Tensor:
    """Of all parameters, less the scale that the loss had in its backward pass."""
    criterion = case.criterion(alum_preset=name, alum_log_gain_interval=0, **NAMES[name])
    criterion.prepare_update(0, announced, case.momentum)
    torch.manual_seed(SEED)
    case.model.zero_grad()
    (scale * criterion(case.model, case.sample)[0]).backward()
    found = [p.grad.flatten().float() for p in case.model.parameters() if p.grad is not None]
    return torch.cat(found) / scale


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["mlm", "ranking"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_float32_s_but_for_rounding(name: str, kind: str) -> None:
    case = single(kind)
    expected = gradient(case, name)
    half = narrow(case)
    for scale in (1.0, 2.0**6, 2.0**9):
        assert error(gradient(half, name, scale, scale), expected) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_scale_carries_gradients_that_float16_cannot_hold(name: str) -> None:
    case = single("classification")
    tiny = 1e-6
    case.model.register_forward_hook(lambda _m, _a, output: (output[0] * tiny, *output[1:]))
    expected = gradient(case, name)
    assert 1e-8 < expected.abs().max() < 2e-5
    half = narrow(case)
    lost = error(gradient(half, name), expected)
    carried = error(gradient(half, name, 2.0**12, 2.0**12), expected)
    assert carried < 0.02 < 0.1 < lost
    if name in ACCUMULATING:  # who is not told of the scale has lost them before it comes
        assert error(gradient(half, name, 1.0, 2.0**12), expected) > 0.1


def fairseqs(kind: type, tmp_path: Path, model: nn.Module) -> Any:
    flags = {"fp16": True, "fp16_no_flatten_grads": True, "fp16_init_scale": 2**30}
    args = options.parse_args_and_arch(
        options.get_training_parser(), mlm_options(tmp_path, tmp_path, **flags, lr=1e-3)
    )
    cfg = convert_namespace_to_omegaconf(args)
    return kind.build_optimizer(cfg, [p for p in model.parameters() if p.requires_grad])


def fp16_update(optimizer: Any, loss_of: Callable[[float], tuple[Tensor, int]]) -> bool:
    """An update as fairseq's trainer makes it; whether it was made."""
    optimizer.zero_grad()
    loss, sample_size = loss_of(loss_scale_of(optimizer))
    optimizer.backward(loss)
    optimizer.multiply_grads(1.0 / sample_size)
    try:
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    except OverflowError:
        optimizer.zero_grad()
        return False
    return True


class _Amp:
    """What fairseq's AMP optimizer is to :func:`loss_scale_of`."""

    def __init__(self, model: nn.Module) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
        self.adam = torch.optim.Adam(model.parameters(), lr=1e-3)


def amp_update(optimizer: _Amp, loss_of: Callable[[float], tuple[Tensor, int]]) -> bool:
    optimizer.adam.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss, _ = loss_of(loss_scale_of(optimizer))
    optimizer.scaler.scale(loss).backward()
    before = optimizer.scaler.get_scale()
    optimizer.scaler.step(optimizer.adam)
    optimizer.scaler.update()
    return optimizer.scaler.get_scale() >= before


@pytest.fixture(params=["fp16", "memory-efficient-fp16", "amp"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A case, its optimizer, and what makes an update."""
    case = single("classification", dropout=0.1)
    if request.param == "amp":
        optimizer = _Amp(case.model)
        return case, optimizer, partial(amp_update, optimizer)
    case = narrow(case)
    kind = FP16Optimizer if request.param == "fp16" else MemoryEfficientFP16Optimizer
    optimizer = fairseqs(kind, tmp_path, case.model)
    return case, optimizer, partial(fp16_update, optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_an_overflow_skips_the_update_and_the_run_goes_on(name: str, way: Any) -> None:
    case, optimizer, update = way
    criterion = case.criterion(alum_preset=name, **NAMES[name])
    start = copy.deepcopy(case.model.state_dict())

    def loss_of(scale: float) -> tuple[Tensor, int]:
        criterion.prepare_update(1, scale, case.momentum)
        torch.manual_seed(SEED)
        loss, sample_size, _ = criterion(case.model, case.sample)
        losses.append(loss.item())
        return loss, sample_size

    losses: list[float] = []
    scales, outcomes = [loss_scale_of(optimizer)], []
    for _ in range(40):
        unchanged = all(torch.equal(w, start[n]) for n, w in case.model.state_dict().items())
        assert unchanged == (True not in outcomes)
        outcomes.append(update(loss_of))
        scales.append(loss_scale_of(optimizer))
    assert scales[0] == 2.0**30
    assert outcomes[0] is False
    assert outcomes[-1] is True
    for before, after, made in zip(scales, scales[1:], outcomes, strict=False):
        assert after == (before if made else before / 2)
    assert all(torch.isfinite(w).all() for w in case.model.state_dict().values())
    assert losses[-1] < 0.9 * losses[outcomes.index(True)]  # it learns the batch
