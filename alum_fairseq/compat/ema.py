"""fairseq's EMA model (``--store-ema``) starts from a checkpoint that has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def started_from_the_weights(trainer: Any) -> Iterator[None]:
    """Inside, a checkpoint without an EMA model is loaded as one whose EMA model is its weights.

    fairseq 0.12 means to do so, but has deleted the weights by then (``KeyError: 'model'``). Can go
    when ``fairseq-train --store-ema --finetune-from-model`` starts from a released checkpoint.

    Args:
        trainer: fairseq's.
    """
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint_to_cpu

    def load_with_ema(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = load(*args, **kwargs)
        # The same dictionary, so that names of old checkpoints are renamed in both.
        state["extra_state"].setdefault("ema", state["model"])
        return state

    if not trainer.cfg.ema.store_ema:
        yield
        return
    checkpoint_utils.load_checkpoint_to_cpu = load_with_ema
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = load
