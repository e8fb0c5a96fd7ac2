"""Checkpoints of random weights for every kind of task, each with a table and binarised data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

from alum_fairseq.prepare.command import main as prepare
from support.options import command_line
from support.places import PLUGIN
from support.token_data import write_conll, write_squad, write_vocabulary

LABELS = ["no", "well, maybe", "yes"]
MODEL = {
    "arch": "roberta",
    "encoder-layers": 2,
    "encoder-embed-dim": 32,
    "encoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 4,
    "max-positions": 40,
}
KINDS = ("single", "pair", "regression", "choices")
TOKENS = {"spans": "alum_span_prediction", "tags": "alum_sequence_tagging"}


def texts_of(mlm_data: Path) -> list[list[str]]:
    lines = (mlm_data.parent / "train").read_text().splitlines()
    return [line.split() for line in lines if len(line.split()) > 40][:90]


def rows_of(kind: str, texts: list[list[str]]) -> list[dict[str, Any]]:
    """Examples of many lengths, some too long for the model."""
    rows = []
    for i, words in enumerate(texts):
        row: dict[str, Any] = {"a": " ".join(words[: 3 + i % 41])}
        if kind == "pair":
            row["b"] = " ".join(words[20 : 24 + i % 7])
        if kind == "choices":
            row |= {f"c{j}": " ".join(words[15 + 5 * j : 18 + 5 * j + i % 3]) for j in range(3)}
        row["label"] = {"regression": round(5 * math.sin(i) ** 2, 2), "choices": i % 3}.get(
            kind, LABELS[i % 3]
        )
        rows.append(row)
    return rows


def save_untrained(path: Path, data: Path, name: str, extra: dict[str, Any]) -> None:
    """A checkpoint as fairseq-train writes it, but of random weights.

    Args:
        name: of task and criterion.
        extra: further options.
    """
    command = {
        **{"task": name, "criterion": name, **MODEL, **extra},
        **{"init-token": 0, "separator-token": 2, "optimizer": "adam", "user-dir": PLUGIN},
    }
    args = options.parse_args_and_arch(
        options.get_training_parser(), [str(data), *command_line(command)]
    )
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(3)
    model = task.build_model(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # else all predictions are alike
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save(state, path)


def make_case(kind: str, mlm_data: Path, folder: Path) -> Any:
    """A table, the data that alum-prepare made of it, and a checkpoint."""
    rows = rows_of(kind, texts_of(mlm_data))
    table, data = folder / f"{kind}.jsonl", folder / kind
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["a", "b"] if kind == "pair" else ["a"]
    vocabulary = folder / f"{kind}-vocabulary"
    vocabulary.mkdir()
    (vocabulary / "dict.txt").write_text((mlm_data / "dict.txt").read_text())
    command = ["--train", table, "--valid", table, "--columns", *columns, "--label", "label"]
    command += ["--vocabulary", vocabulary, "--output", data, "--workers", 1]
    command += ["--max-positions", MODEL["max-positions"]]
    command += ["--regression", "--scale", 5] if kind == "regression" else []
    command += ["--choices", "c0", "c1", "c2"] if kind == "choices" else []
    assert prepare([str(word) for word in command]) == 0
    path = folder / f"{kind}.pt"
    regression = kind == "regression"
    name = "alum_sentence_ranking" if kind == "choices" else "alum_sentence_prediction"
    extra = {"num-classes": 1 if regression else 3, "regression-target": regression or None}
    save_untrained(path, data, name, extra)
    return SimpleNamespace(kind=kind, rows=rows, table=table, data=data, path=path)


def make_token_case(kind: str, folder: Path, unanswerable: bool = False) -> Any:
    """Questions or tagged sentences, many of them in several inputs, and a checkpoint for them."""
    if kind == "tags":
        table = write_conll(folder / "tags.conll", 30, 1)
    else:
        table = write_squad(folder / "spans.json", 30, 1, unanswerable)
    data, path = folder / kind, folder / f"{kind}.pt"
    command = ["--train", table, "--valid", table, "--output", data]
    command += ["--vocabulary", write_vocabulary(folder / f"{kind}-vocabulary")]
    command += ["--max-positions", 8 if kind == "tags" else 16]
    command += [] if kind == "tags" else ["--doc-stride", 4, "--max-question", 4, "--max-answer", 3]
    assert prepare([str(word) for word in command]) == 0
    extra = {"num-classes": 5, "max-positions": 8} if kind == "tags" else {"max-positions": 16}
    save_untrained(path, data, TOKENS[kind], extra)
    return SimpleNamespace(kind=kind, table=table, data=data, path=path)


def texts(case: Any) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in row if name != "label") for row in case.rows]
