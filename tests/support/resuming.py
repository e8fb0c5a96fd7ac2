"""Whether two runs ended alike: their last checkpoints compared, times aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils

TIMES = {"wps", "ups", "wall", "train_wall"}


def last_state(save_dir: Path) -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(save_dir / "checkpoint_last.pt"))


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Nested containers, equal to the bit."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{place}/{index}")
    else:
        assert one == other or one != one, place


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint less the times in it."""
    kept = {key: state[key] for key in ("model", "last_optimizer_state")}
    kept["history"] = state["optimizer_history"][-1]  # before it, one for each other life
    extra = dict(state["extra_state"])
    del extra["previous_training_time"], extra["metrics"]
    meters = state["extra_state"]["metrics"]
    train = [meter for meter in meters["train"] if meter[1] not in TIMES]
    return {**kept, **extra, "train": train}
