"""One case on a GPU and on the CPU: how it is moved, and how far apart the numbers come out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from alum_fairseq.adversarial.presets import PRESETS
from alum_fairseq.encoder.tap import EncoderTap
from alum_fairseq.robustness.command import main as robustness
from support.method_cases import Case, Found, engine, make_case

ACCUMULATING = ("fgm", "pgd", "freelb", "freelb++")  # which hold one graph at a time anyway
METHODS = [
    (p, m) for p in PRESETS for m in ("normal", "low") if m == "normal" or p not in ACCUMULATING
]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def placed(value: Any, device: str = "cuda") -> Any:
    """A batch there."""
    if isinstance(value, dict):
        return {name: placed(entry, device) for name, entry in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def on_the_gpu(case: Case, dtype: torch.dtype | None = None) -> Case:
    """A copy of a case there, in another type if one is given."""
    other = copy.copy(case)
    other.model, other.momentum = (
        copy.deepcopy(model).to("cuda", dtype) for model in (case.model, case.momentum)
    )
    other.sample = placed(case.sample)
    return other


@contextmanager
def noise_of_the_cpu() -> Iterator[None]:
    """Inside, noise on the GPU has the numbers that the CPU's generator draws."""

    def drawing(original: Any) -> Any:
        def draw(noise: Tensor, *numbers: float, generator: Any = None, **more: float) -> Tensor:
            if noise.device.type != "cpu":
                original(noise, *numbers, generator=generator, **more)  # refuses what it refuses
            on_cpu = torch.empty(noise.shape, dtype=noise.dtype)
            return noise.copy_(original(on_cpu, *numbers, **more))

        return draw

    names = ("normal_", "uniform_")
    with mock.patch.multiple(Tensor, **{n: drawing(getattr(Tensor, n)) for n in names}):
        yield


def distance(got: Tensor, expected: Tensor) -> float:
    """Between two tensors, as a part of the length of one."""
    got, expected = (tensor.double().cpu() for tensor in (got, expected))
    return float((got - expected).norm() / expected.norm())


def error(got: Found, expected: Found) -> float:
    """The distance of all numbers but the loss."""
    assert got.keys() == expected.keys()
    names = sorted(expected.keys() - {"loss"})
    found, wanted = (torch.cat([e[n].flatten().cpu() for n in names]) for e in (got, expected))
    return distance(found, wanted)


def error_of_low_memory(kind: str) -> float:
    """Of low memory beside normal memory, on the GPU, dropout and all."""
    case = on_the_gpu(make_case(kind, dropout=0.3, attention_dropout=0.3))
    normal, low = (engine(case, "calibrated", alum_memory=m) for m in ("normal", "low"))
    return max(error(low, normal), distance(low["loss"], normal["loss"]))


def passes_with_dropout(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits on the GPU: of a pass, of the same run again, of another."""
    case = on_the_gpu(make_case("mlm", dropout=0.3, attention_dropout=0.3), dtype)
    tap = EncoderTap(case.model)
    with tap.recording():
        first = case.model(**case.sample["net_input"])[0]
    again = tap.rerun(tap.embeddings)
    other = case.model(**case.sample["net_input"])[0]
    return first, again, other


def reports_of_robustness(
    checkpoint: Path, folder: Path, table: Path | None = None
) -> list[dict[str, float]]:
    """The measures of attacks on embeddings, on the GPU and on the CPU.

    Args:
        table: of the examples; else the checkpoint's own data are taken.
    """
    reports = []
    for device in ([], ["--cpu"]):
        output = folder / f"report{len(reports)}"
        effort = ["--quick", "--parts", "l2", "--examples", "40", "--attack-examples", "16"]
        command = ["--path", checkpoint, "--output", output, *effort, *device]
        command += [] if table is None else ["--input", table]
        assert robustness([str(word) for word in command]) == 0
        reports.append(json.loads((output / "report.json").read_text()))
    return [
        {m["key"]: v["value"] for m in report["measures"] for v in m["values"].values()}
        for report in reports
    ]
