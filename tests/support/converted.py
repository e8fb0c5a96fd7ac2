"""A folder like those of alum-convert, of a tiny model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary

from support.small_models import make_model, make_task

SIZES = {
    **{"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64},
    **{"encoder_attention_heads": 4, "max_positions": 40, "pooler_dropout": 0.2},
}


def save_model(folder: Path, words: Iterable[str], **options: Any) -> None:
    """A folder as alum-convert makes it: the dictionary, and a checkpoint that says its options."""
    folder.mkdir(exist_ok=True)
    dictionary = Dictionary()
    for word in words:
        dictionary.add_symbol(word)
    dictionary.save(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")
    model = make_model(make_task(dictionary), **SIZES)
    state = {
        "args": Namespace(**{"arch": "alum_roberta", "alum_layer_norm_eps": 1e-12, **SIZES}),
        "model": model.state_dict(),
        "optimizer_history": [{"lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"epoch": 0},
    }
    vars(state["args"]).update(options)
    torch.save(state, folder / "model.pt")
