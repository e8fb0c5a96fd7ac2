"""Half precision on a CPU: the adversary's direction, loss scaling, and what an overflow does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from support.quick_train import mlm_options
from support.small_models import make_model, make_sample, make_task
from torch import Tensor, nn

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Cosine with the float32 perturbation: 0.993 or more was measured for bf16, which has 8 bits, and
# 0.99997 or more for fp16, which has 11.
SAME_DIRECTION = {"bf16": 0.98, "fp16": 0.999}

Criterion = Callable[[nn.Module], tuple[Tensor, Any, dict[str, Any]]]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the adversary found, batch by batch."""
    deltas: list[Tensor] = []
    perturb = Adversary.perturb
    monkeypatch.setattr(
        Adversary, "perturb", lambda *a, **k: deltas.append(perturb(*a, **k)) or deltas[-1]
    )
    return deltas


@pytest.fixture
def model() -> nn.Module:
    return make_model(make_task(), dropout=0.1).train()


@pytest.fixture
def criterion() -> Criterion:
    """The criterion on one batch, with one seed."""
    task = make_task(passes_update_number=True)
    config = AlumMlmConfig(tpu=False, alum_alpha=2.0, alum_epsilon=0.3, alum_noise_std=0.05)
    alum, sample = AlumMlm(config, task), make_sample(task.source_dictionary)

    def run(model: nn.Module) -> tuple[Tensor, Any, dict[str, Any]]:
        torch.manual_seed(3)
        return alum(model, sample)

    return run


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0))


def gradient(model: nn.Module) -> Tensor:
    grads = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads)


@pytest.mark.parametrize("way", ["autocast", "half model"])
@pytest.mark.parametrize("half", HALVES)
def test_the_adversary_finds_the_direction_that_float32_finds(
    half: str, way: str, model: nn.Module, criterion: Criterion, found: list[Tensor]
) -> None:
    criterion(model)
    narrow = copy.deepcopy(model).to(HALVES[half]) if way == "half model" else model
    context = torch.autocast("cpu", HALVES[half]) if way == "autocast" else nullcontext()
    with context:
        _, _, log = criterion(narrow)
    wide, delta = found
    assert log["_alum_skipped"] == 0
    assert delta.dtype == torch.float32
    assert cosine(delta, wide) > SAME_DIRECTION[half]
    # As large, sentence by sentence, as far as the size of the embeddings is known.
    torch.testing.assert_close(delta.norm(dim=(1, 2)), wide.norm(dim=(1, 2)), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("half", HALVES)
def test_the_gradient_has_one_direction_whatever_the_loss_is_scaled_by(
    half: str, model: nn.Module, criterion: Criterion, found: list[Tensor]
) -> None:
    model = model.to(HALVES[half])
    gradients = []
    for scale in (1.0, 2.0**5, 2.0**10):
        model.zero_grad()
        (scale * criterion(model)[0]).backward()
        gradients.append(gradient(model) / scale)
    # The adversary does not know of the scale.
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert all(torch.isfinite(g).all() for g in gradients)
    for scaled in gradients[1:]:
        assert cosine(scaled, gradients[0]) > 0.999
        assert float(scaled.norm()) == pytest.approx(float(gradients[0].norm()), rel=0.02)


# Overflow. The optimizers are fairseq's for --fp16 and --memory-efficient-fp16, and torch's scaler
# as --amp uses it, but for the CPU.


def fairseqs(kind: type, tmp_path: Path, model: nn.Module) -> Any:
    flags = {"fp16": True, "fp16_no_flatten_grads": True, "fp16_init_scale": 2**30}
    args = options.parse_args_and_arch(
        options.get_training_parser(), mlm_options(tmp_path, tmp_path, **flags, lr=1e-3)
    )
    cfg = convert_namespace_to_omegaconf(args)
    return kind.build_optimizer(cfg, [p for p in model.parameters() if p.requires_grad])


def fp16_update(optimizer: Any, criterion: Criterion, model: nn.Module) -> bool:
    """An update as fairseq's trainer makes it; whether it was made."""
    optimizer.zero_grad()
    loss, sample_size, _ = criterion(model)
    optimizer.backward(loss)
    optimizer.multiply_grads(1.0 / sample_size)
    try:
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    except OverflowError:
        optimizer.zero_grad()
        return False
    return True


def amp_update(scaler: Any, optimizer: Any, criterion: Criterion, model: nn.Module) -> bool:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss, _, _ = criterion(model)
    scaler.scale(loss).backward()
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


@pytest.fixture(params=["fp16", "memory-efficient-fp16", "amp"])
def update(
    request: pytest.FixtureRequest, model: nn.Module, criterion: Criterion, tmp_path: Path
) -> Iterator[tuple[nn.Module, Callable[[], bool], Callable[[], float]]]:
    """A model, what makes an update of it, and the scale that its loss has."""
    if request.param == "amp":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        yield model, partial(amp_update, scaler, optimizer, criterion, model), scaler.get_scale
        return
    model = model.half()
    kind = FP16Optimizer if request.param == "fp16" else MemoryEfficientFP16Optimizer
    optimizer = fairseqs(kind, tmp_path, model)
    made = partial(fp16_update, optimizer, criterion, model)
    yield model, made, lambda: optimizer.scaler.loss_scale


def test_an_overflow_skips_the_update_and_the_run_goes_on(
    update: tuple[nn.Module, Callable[[], bool], Callable[[], float]], found: list[Tensor]
) -> None:
    model, make, scale = update
    start = copy.deepcopy(model.state_dict())
    scales, outcomes = [scale()], []
    for _ in range(60):
        unchanged = all(torch.equal(w, start[n]) for n, w in model.state_dict().items())
        assert unchanged == (True not in outcomes)
        outcomes.append(make())
        scales.append(scale())
    assert outcomes[0] is False
    assert outcomes[-1] is True
    for before, after, made in zip(scales, scales[1:], outcomes, strict=False):
        assert after == (before if made else before / 2)
    # The adversary worked all the while: it is not what overflows.
    assert all(torch.isfinite(delta).all() for delta in found)
    assert all(torch.isfinite(w).all() for w in model.state_dict().values())
