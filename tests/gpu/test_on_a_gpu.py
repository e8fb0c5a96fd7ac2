"""On a GPU: the numbers of the CPU, every method in every precision, and the programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.in_process import fairseq_train
from support.method_cases import KINDS, engine, make_case
from support.on_gpu import (
    DTYPES,
    METHODS,
    error,
    error_of_low_memory,
    noise_of_the_cpu,
    on_the_gpu,
    passes_with_dropout,
    reports_of_robustness,
)
from support.options import SMALL_RUN, command_line
from support.places import ROOT
from support.solved import solve
from support.untrained import TOKENS, make_token_case, texts
from torch import nn

from alum_fairseq.predict import Predictor

sys.path.insert(0, str(ROOT / "scripts"))
import benchmark

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

# Half precision rounds a perturbation of 1e-5 away.
SEEN_IN_HALF = {
    **{"calibrated": {}, "vat": {}, "fgm": {}, "pgd": {}, "freelb": {}, "freelb++": {}},
    "smart": {"alum_epsilon": 0.3, "alum_step_size": 0.2, "alum_noise_std": 0.05},
}


@pytest.fixture
def same_noise() -> Iterator[None]:
    with noise_of_the_cpu():
        yield


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("preset", "memory"), METHODS)
def test_losses_and_gradients_are_those_of_the_cpu(preset: str, kind: str, memory: str) -> None:
    case = make_case(kind)
    expected = engine(case, preset, alum_memory=memory)
    got = engine(on_the_gpu(case), preset, alum_memory=memory)
    # fairseq's softmax is in float32, whatever the model is in, and FreeLB++ goes through ten of
    # them. Numbers of 1e-10 are weighed with 1e9 where a preset's perturbations are so small.
    bound = 1e-4 if preset in ("paper", "r3f", "smart") else 1e-5
    torch.testing.assert_close(got["loss"].cpu(), expected["loss"], rtol=bound, atol=0)
    assert error(got, expected) < bound


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
@pytest.mark.parametrize("preset", SEEN_IN_HALF)
def test_half_precision_gives_float32_s_gradients_but_for_rounding(
    preset: str, precision: str
) -> None:
    case = make_case("classification")
    case.model.float(), case.momentum.float()
    options = {"alum_alpha": 2.0, **SEEN_IN_HALF[preset]}
    if preset.startswith("freelb"):
        del options["alum_alpha"]
    # The start is larger in half precision, unless it is told how large.
    options.setdefault("alum_noise_std", 0.1)
    expected = engine(case, preset, **options)
    context: AbstractContextManager = nullcontext()
    if precision == "amp":
        context = torch.autocast("cuda", torch.float16)
    with context:
        got = engine(on_the_gpu(case, DTYPES.get(precision)), preset, **options)
    assert error(got, expected) < (0.1 if precision == "bf16" else 0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_low_memory_is_normal_memory_dropout_and_all(kind: str) -> None:
    assert error_of_low_memory(kind) < 1e-6


@pytest.mark.parametrize("precision", DTYPES)
def test_a_pass_that_is_run_again_has_the_dropout_masks_of_the_first(precision: str) -> None:
    first, again, other = passes_with_dropout(DTYPES[precision])
    torch.testing.assert_close(again, first)
    assert (other - first).abs().max() > 0.1


def waits(model: nn.Module, criterion: nn.Module, sample: dict[str, Any]) -> int:
    def update() -> None:
        loss, _, log = criterion(model, sample)
        loss.backward()
        criterion.reduce_metrics([log])

    update()
    return benchmark.host_waits(update)


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["mlm", "classification"])
def test_the_host_waits_hardly_more_often_than_stocks(kind: str, steps: int, memory: str) -> None:
    case = on_the_gpu(make_case(kind, encoder_layers=12), torch.float32)
    ours = case.criterion(alum_steps=steps, alum_memory=memory, alum_log_gain_interval=0)
    stock = waits(case.model, case.stock, case.sample)
    assert waits(case.model, ours, case.sample) <= stock + 4


@pytest.mark.parametrize("precision", ["", "fp16", "bf16", "amp"])
def test_fairseq_train_pretrains_and_goes_on(
    precision: str, mlm_data: Path, tmp_path: Path
) -> None:
    options = {**SMALL_RUN, "cpu": False, "save-dir": tmp_path, "max-valid-steps": 2}
    if precision:
        options |= {precision: True, "fp16-init-scale": 4}
    options |= {"alum-validate": True}
    for updates in (3, 6):
        done = fairseq_train(mlm_data, *command_line({**options, "max-update": updates}))
        assert done.error is None, done.log
    assert "@ 3 updates" in done.log
    [*_, last] = [line for line in done.log.splitlines() if '"valid_adv_gain"' in line]
    assert float(json.loads(last)["valid_adv_gain"]) > 1.5


def test_predictions_are_those_of_the_cpu(case: Any) -> None:
    on_gpu, on_cpu = (Predictor.load(case.path, device=device) for device in ("cuda", "cpu"))
    found = on_gpu.logits(texts(case))
    torch.testing.assert_close(found.cpu(), on_cpu.logits(texts(case)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["single", *TOKENS])
def test_robustness_is_measured(kind: str, cases: dict[str, Any], tmp_path: Path) -> None:
    if kind in TOKENS:
        case = solve(make_token_case(kind, tmp_path), tmp_path)
        found, expected = reports_of_robustness(case.path, tmp_path, case.table)
    else:
        found, expected = reports_of_robustness(cases[kind].path, tmp_path)
    assert found.keys() == expected.keys()
    assert len(found) > 2
    for name, value in found.items():
        assert abs(value - expected[name]) <= 0.1 * max(1.0, abs(expected[name])), name
