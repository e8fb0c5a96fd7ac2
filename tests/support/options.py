"""Options of fairseq-train for a small model, and how they become a command line."""

from __future__ import annotations

from typing import Any

from support.places import PLUGIN

# A model small enough that an update takes milliseconds, as options of fairseq-train.
SMALL_MODEL = {
    "arch": "roberta",
    "encoder-layers": 2,
    "encoder-embed-dim": 32,
    "encoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 4,
    "max-positions": 66,
    "tokens-per-sample": 64,
}
SMALL_RUN = {
    "user-dir": PLUGIN,
    "task": "alum_masked_lm",
    "criterion": "alum_mlm",
    **SMALL_MODEL,
    "sample-break-mode": "none",
    "batch-size": 8,
    "optimizer": "adam",
    "lr": 1e-3,
    "max-update": 4,
    "log-format": "json",
    "log-interval": 1,
    "num-workers": 0,
    "cpu": True,
    "no-epoch-checkpoints": True,
}


def command_line(options: dict[str, Any]) -> list[str]:
    """``{"lr": 1, "cpu": True}`` as ``--lr 1 --cpu``."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words
