"""fairseq's own trainer, with a small model and batches in memory: whole updates, without data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

from support.options import command_line
from support.small_models import make_dictionary, make_sample

LENGTHS = (9, 8, 4, 7)
KINDS = ("masked_lm", "sentence_prediction")


def make_trainer(kind: str, folder: Path, alum: dict[str, Any] | None, **more: Any) -> Trainer:
    """A trainer of a task.

    Args:
        kind: of :data:`KINDS`.
        folder: an empty one, for the dictionaries.
        alum: options of ours; None: stock fairseq.
        more: options of fairseq's.
    """
    dictionary, labels = make_dictionary(), make_dictionary(3)
    for name, words in (("", dictionary), ("input0", dictionary), ("label", labels)):
        (folder / name).mkdir(exist_ok=True)
        words.save(str(folder / name / "dict.txt"))
    task = kind if alum is None else f"alum_{kind}"
    criterion = "alum_mlm" if task == "alum_masked_lm" else task
    chosen = {
        **{"task": task, "criterion": criterion, "arch": "roberta", "max-positions": 64},
        **{"encoder-layers": 12, "encoder-embed-dim": 16, "encoder-ffn-embed-dim": 32},
        **{"encoder-attention-heads": 2, "optimizer": "adam", "lr": 1e-4, "clip-norm": 1.0},
        **{"dropout": 0.1, "attention-dropout": 0.1, "save-dir": folder, "max-update": 9},
        **({"num-classes": 3} if kind == "sentence_prediction" else {"tokens-per-sample": 32}),
        **(alum or {}),
        **more,
    }
    parser = options.get_training_parser()
    words = [str(folder), *command_line(chosen)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = task.build_model(cfg.model)
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def make_batch(trainer: Trainer, kind: str) -> dict[str, Any]:
    """A batch with padding, for its task."""
    torch.manual_seed(2)
    masked = 2 if kind == "masked_lm" else 0
    batch = make_sample(trainer.task.source_dictionary, LENGTHS, masked)
    if kind == "sentence_prediction":
        batch["target"] = torch.tensor([[0], [2], [1], [1]])
    return batch
