"""What is accepted, but may not be meant, is said in one line before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.options import command_line
from support.places import PLUGIN
from support.quick_train import run_forked

TRAINING = {
    **{"task": "alum_sentence_prediction", "criterion": "alum_sentence_prediction"},
    **{"user-dir": PLUGIN, "cpu": True, "optimizer": "adam", "lr": 1e-3, "batch-size": 8},
    **{"arch": "roberta", "encoder-layers": 2, "encoder-embed-dim": 32, "max-positions": 40},
    **{"encoder-ffn-embed-dim": 64, "encoder-attention-heads": 4, "num-classes": 3},
    **{"num-workers": 0, "disable-validation": True},
}


@pytest.fixture
def train(tmp_path: Path) -> Any:
    """Train for a number of updates; returns what was logged."""

    def run(data: Path, updates: int, **more: Any) -> str:
        options = {name.replace("_", "-"): value for name, value in more.items()}
        options |= {**TRAINING, **options, "max-update": updates, "save-dir": tmp_path / "save"}
        command = [str(data), *command_line(options)]
        return run_forked("train", command, tmp_path, check=True).stdout

    return run


def test_missing_tokens_and_another_order(cases: Any, train: Any, tmp_path: Path) -> None:
    case = cases["pair"]
    state = torch.load(case.path)
    state["task_state"] = {"classes": ["yes", "well, maybe", "no"]}
    start = tmp_path / "start.pt"
    torch.save(state, start)
    said = train(case.data, 1, finetune_from_model=start)
    assert f"--init-token is not given: {start} was trained with one before a text; give" in said
    assert "give --separator-token 2" in said
    assert (
        f"{start} has a head of the classes yes, well, maybe, no, the data have the order "
        "no, well, maybe, yes: to start from what it has learnt, give alum-prepare --labels"
    ) in said
    # As it should be, nothing is said. A run of one text needs no separator.
    said = train(case.data, 1, init_token=0, separator_token=2, restore_file=case.path)
    assert "is not given" not in said
    assert "has a head of the classes" not in said
    single = cases["single"]
    said = train(single.data, 1, init_token=0, finetune_from_model=single.path)
    assert "is not given" not in said


def test_other_options_of_ours_are_named_on_resuming(cases: Any, train: Any) -> None:
    data = cases["single"].data
    train(data, 1, init_token=0, alum_steps=2)
    said = train(data, 2, init_token=0, alum_preset="fgm", alum_steps=2)
    assert "checkpoint_last.pt was trained with --alum-preset calibrated, now fgm\n" in said
    said = train(data, 3, init_token=0, alum_preset="fgm", alum_steps=2)
    assert "was trained with" not in said
