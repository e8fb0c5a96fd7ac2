"""A run that is stopped and goes on ends as one that was never stopped, to the bit.

Over the options that keep state of their own. What is killed amid a write: test_kill_and_resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import run_tool
from support.quick_train import mlm_options, start
from support.resuming import assert_equal, comparable, last_state

SHARED = {
    **{"max_update": None, "max_epoch": 3, "tokens_per_sample": 32, "dropout": 0.1},
    **{"disable_validation": False, "alum_log_gain_interval": 0},
}
FP16 = {"fp16": True, "fp16_no_flatten_grads": True, "fp16_init_scale": 4}
# No epoch is better than the first.
PLATEAU = {"lr_scheduler": "reduce_lr_on_plateau", "lr_shrink": 0.5, "lr_threshold": 1e9}
IDLE = {"lr": 1e-30, "patience": 2, "max_epoch": 9}

# A row: the epoch after which the run is stopped, and its options.
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "no workers": (2, {}),
    "a worker": (1, {"num_workers": 1}),
    "two workers": (2, {"num_workers": 2}),
    "bf16": (1, {"bf16": True}),
    "memory-efficient bf16": (1, {"memory_efficient_bf16": True}),
    "amp": (1, {"amp": True}),
    "fp16, whose scale grows": (2, {**FP16, "fp16_scale_window": 4}),
    "memory-efficient fp16": (1, {**FP16, "memory_efficient_fp16": True}),
    "moving average": (1, {"store_ema": True, "bf16": True}),
    "plateau": (2, {**PLATEAU, "lr_patience": 1, "max_epoch": 5}),
    "plateau, after the rate fell": (3, {**PLATEAU, "lr_patience": 0, "max_epoch": 5}),
    "plateau, warm-up": (1, {**PLATEAU, "warmup_updates": 5}),
    "patience": (2, IDLE),
    "cosine": (1, {"lr_scheduler": "cosine", "max_update": 9, "lr_period_updates": 4}),
    "inverse square root": (1, {"lr_scheduler": "inverse_sqrt", "warmup_updates": 4}),
    "annealed by epoch": (2, {"lr_scheduler": "fixed", "force_anneal": 2, "lr_shrink": 0.5}),
    "several batches an update": (2, {"update_freq": "1,2,3"}),
    "curriculum": (1, {"curriculum": 2}),
    "adafactor": (1, {"optimizer": "adafactor"}),
    "nag": (1, {"optimizer": "nag"}),
    "schedule": (1, {"alum_start_update": 2, "alum_warmup_updates": 4}),
}


@pytest.fixture(scope="module")
def data(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three batches."""
    folder = tmp_path_factory.mktemp("few")
    lines = (mlm_data.parent / "valid").read_text().splitlines()
    (folder / "text").write_text("\n".join(lines[:12]) + "\n")
    run_tool(
        *("fairseq-preprocess", "--only-source", "--srcdict", mlm_data / "dict.txt"),
        *("--trainpref", folder / "text", "--validpref", folder / "text"),
        *("--destdir", folder / "bin"),
    )
    return folder / "bin"


def train(data: Path, save: Path, options: dict[str, Any], **more: Any) -> str:
    command = mlm_options(data, save, **{**SHARED, **options, **more})
    return start(command, save.with_suffix(".log")).wait()


@pytest.mark.parametrize("row", ROWS)
def test_stopped_and_resumed_it_ends_as_never_stopped(row: str, data: Path, tmp_path: Path) -> None:
    stopped_after, options = ROWS[row]
    train(data, tmp_path / "unbroken", options)
    train(data, tmp_path / "stopped", options, max_epoch=stopped_after)
    train(data, tmp_path / "stopped", options)
    expected, found = last_state(tmp_path / "unbroken"), last_state(tmp_path / "stopped")
    assert_equal(comparable(found), comparable(expected))
