"""The README says what the code does: its options, its presets, its Python, its paths."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch
from support.places import ROOT

from alum_fairseq import PRESETS
from alum_fairseq.criterions.options import GONE, AlumConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = {
    cells[1].strip(" `"): [cell.strip() for cell in cells[2:5]]
    for cells in (line.split("|") for line in README.splitlines())
    if len(cells) > 4 and re.fullmatch(r" `--alum-[a-z-]+` ", cells[1])
}

PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_option_is_explained() -> None:
    names = {f.name for f in fields(AlumConfig)} - GONE.keys() - {"_name"}
    options = {"--" + name.replace("_", "-") for name in names}
    assert set(ROWS) == options


@pytest.mark.parametrize("preset", ["calibrated", "paper", "reference"])
def test_the_presets_are_those_of_the_code(preset: str) -> None:
    column = ["calibrated", "paper", "reference"].index(preset)
    chosen = PRESETS[preset]
    values = vars(chosen.adversary) | vars(chosen) | {"alpha": chosen.pretraining_alpha}
    left_out = {"ball", "adversary", "method", "pretraining_alpha", "finetuning_alpha"}
    for name in values.keys() - left_out:
        shown = ROWS["--alum-" + name.replace("_", "-")][column].split(" ")[0]
        value = values[name]
        if value is None:
            assert (name, shown) == ("noise_std", "by")  # by precision
            continue
        assert shown == value if isinstance(value, str) else float(shown) == value, name
    if chosen.finetuning_alpha != chosen.pretraining_alpha:
        assert f"({chosen.finetuning_alpha:g}" in ROWS["--alum-alpha"][column]


def test_every_preset_is_named() -> None:
    named = set(re.findall(r"`([a-z0-9+]+)`", README))
    assert PRESETS.keys() <= named


def test_no_option_is_named_that_is_unknown_but_those_said_to_be_removed() -> None:
    ours = {"--alum-layer-norm-eps"}  # of the model
    named = set(re.findall(r"--alum-[a-z]+(?:-[a-z]+)*", README)) - ours
    gone = {"--" + name.replace("_", "-") for name in GONE}
    assert named - ROWS.keys() == gone
    for option in gone:
        assert len(re.findall(rf"`{option}(?: N)?`", README)) == 1, option


def test_its_adversary_runs() -> None:
    [code] = [block for block in PYTHON if "perturb" in block]
    weights = torch.randn(4, 5, requires_grad=True)
    names = {
        "predict": lambda e: torch.tanh(e @ weights).mean(1),
        "embeddings": torch.randn(2, 3, 4),
        "mask": torch.tensor([[True, True, True], [True, False, False]]),
        "labels": torch.tensor([0, 1]),
    }
    exec(code, names)
    names["loss"].backward()
    assert weights.grad.abs().sum() > 0
    assert names["regularizer"] > 0


def test_the_files_that_it_names_are_there() -> None:
    for path in re.findall(r"\b((?:examples|scripts|alum_fairseq)/[\w/.]+\.\w+)", README):
        assert (ROOT / path).exists(), path
