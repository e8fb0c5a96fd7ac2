"""Losses and gradients as they were before the engine was rebuilt: the same mathematics today.

``recorded_numbers.json`` was written by this file, run as a program, at commit 97b99b5, the last
one before the rebuild. Models are in float64, so that another processor's
rounding does not matter; what remains is the task's loss, which fairseq takes in float32.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.one_batch import RECORDED, make_case, step

RECORD = Path(__file__).with_name("recorded_numbers.json")

# What is computed today as it was then, by the options that it has today.
OPTIONS: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "paper": {"alum_preset": "paper"},
    "reference": {"alum_preset": "reference"},
    "steps": {"alum_steps": 3, "alum_step_size": 0.01},
    "linf": {"alum_norm": "linf", "alum_norm_scope": "token", "alum_gradient": "steepest"},
    "raw": {"alum_gradient": "raw", "alum_projection": "clip", "alum_epsilon_mode": "absolute"},
    "divergence": {"alum_divergence": "jensen_shannon"},
    "both sides": {"alum_divergence": "symmetric_kl"},
    "layer": {"alum_site": "1"},
    "independent": {"alum_dropout": "independent"},
    "fraction": {"alum_fraction": 0.5},
    "alpha": {"alum_alpha": 3.0, "alum_epsilon": 0.3, "alum_noise_std": 0.05},
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layerdrop": {"encoder_layers": 4, "encoder_layerdrop": 0.5},
}
CASES = [
    (kind, name, model, memory)
    for kind in RECORDED
    for name in OPTIONS
    for model in MODELS
    for memory in ("normal", "low")
    if not (kind == "regression" and "alum_divergence" in OPTIONS[name])
    if model == "plain" or name in ("calibrated", "layer")
]


def numbers_of(
    kind: str, name: str, model: str, memory: str, dtype: torch.dtype = torch.float64
) -> tuple[list[float], str]:
    """The loss, the regulariser, the gain's two divergences, the gradients' sums; a digest."""
    torch.manual_seed(1)
    network, sample, criterion = make_case(kind, **MODELS[model])
    criterion = criterion(alum_memory=memory, alum_log_gain_interval=1, **OPTIONS[name])
    loss, log, gradients = step(criterion, network.to(dtype), sample)
    kept = ("loss", "_alum_loss", "_alum_norm", "_alum_gain_adversarial", "_alum_gain_random")
    found = [loss.item(), *(float(log[key]) for key in kept)]
    for gradient in gradients.values():
        found += [gradient.sum().item(), gradient.norm().item()]
    parts = [loss, *(gradients[name] for name in sorted(gradients)), torch.rand(3)]
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    return found, digest


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_numbers_are_those_of_before(case: tuple[str, str, str, str]) -> None:
    expected = json.loads(RECORD.read_text())[" ".join(case)]
    assert numbers_of(*case)[0] == pytest.approx(expected, rel=2e-5, abs=2e-6)


if __name__ == "__main__":
    RECORD.write_text(
        json.dumps(
            {" ".join(case): [float(f"{x:.9g}") for x in numbers_of(*case)[0]] for case in CASES},
            indent=0,
        )
    )
