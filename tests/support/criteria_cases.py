"""A criterion of every kind with a model and a batch, in float64, on which it works to rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.criterions.alum_sentence_prediction import (
    AlumSentencePrediction,
    AlumSentencePredictionConfig,
)
from alum_fairseq.criterions.alum_sentence_ranking import (
    AlumSentenceRanking,
    AlumSentenceRankingConfig,
)
from support.small_models import make_dictionary, make_model, make_sample, make_task
from support.token_cases import TOKENS, criterion_of, make_tokens

PAD = 1
HEAD = "sentence_classification_head"
LARGE = {"alum_alpha": 2.0, "alum_epsilon": 0.3, "alum_noise_std": 0.05}
ROWS = ([0, 2, 4], [1, 3])  # of two workers: not equally many, nor equally long
KINDS = (
    *("mlm", "mlm, a worker without masks", "mlm, a worker without a batch"),
    *("classification", "regression", "ranking"),
    *TOKENS,
)
MEMORIES = ("normal", "low")

Batch = dict[str, Any]


@dataclass
class Case:
    """A model, a criterion, a batch, and the parts of it that workers have; None: a dummy."""

    model: nn.Module
    criterion: nn.Module
    whole: Batch
    parts: list[Batch | None]


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """These rows of a batch, less the padding that they do not need."""
    part = {**batch, "nsentences": len(rows), "target": batch["target"][rows]}
    for name in (name for name in batch if name.startswith("net_input")):
        tokens, lengths = (batch[name][key][rows] for key in ("src_tokens", "src_lengths"))
        width = lengths.max()
        part[name] = {"src_tokens": tokens[:, :width].contiguous(), "src_lengths": lengths}
        if batch["target"].shape == batch[name]["src_tokens"].shape:
            part["target"] = part["target"][:, :width].contiguous()
    return part


def take_masks_off(batch: Batch, rows: list[int]) -> None:
    for row in rows:
        masked = batch["target"][row].ne(PAD)
        batch["net_input"]["src_tokens"][row][masked] = batch["target"][row][masked]
        batch["target"][row] = PAD


def make_case(kind: str, memory: str) -> Case:
    torch.manual_seed(7)
    task = make_task(passes_update_number=True, label_dictionary=make_dictionary(3))
    # fairseq's gelu computes in float32; equality to rounding wants float64 throughout.
    model = make_model(task, activation_fn="tanh", pooler_activation_fn="tanh").train()
    options = {**LARGE, "alum_memory": memory}
    if kind.startswith("mlm"):
        criterion = AlumMlm(AlumMlmConfig(tpu=False, **options), task)
        whole = make_sample(task.source_dictionary, (9, 8, 4, 7, 5))
    elif kind == "ranking":
        criterion = AlumSentenceRanking(AlumSentenceRankingConfig(num_classes=2, **options), task)
        whole = {"nsentences": 5, "ntokens": 68, "target": torch.tensor([0, 1, 1, 0, 1])}
        for name in ("net_input1", "net_input2"):
            # The candidates' embeddings lie side by side: were the first less padded in one part,
            # the second one's noise would be another.
            one = make_sample(task.source_dictionary, (9, 9, 4, 7, 5), masked=0)
            whole[name] = one["net_input"]
    elif kind in TOKENS:
        criterion = criterion_of(kind, task)(**options)
        whole = make_sample(task.source_dictionary, (9, 8, 4, 7, 5), masked=0)
        make_tokens(kind, model, whole)
        if kind == "span":
            whole["target"] = torch.tensor([[3, 4], [2, 2], [0, 0], [2, 5], [3, 3]])
    else:
        config = AlumSentencePredictionConfig(regression_target=kind == "regression", **options)
        criterion = AlumSentencePrediction(config, task)
        whole = make_sample(task.source_dictionary, (9, 8, 4, 7, 5), masked=0)
        whole["target"] = torch.tensor([[0], [2], [1], [1], [0]])
    if not kind.startswith("mlm") and kind not in TOKENS:
        classes = {"ranking": 1, "regression": 1, "classification": 3}[kind]
        model.register_classification_head(HEAD, num_classes=classes)
    if kind == "mlm, a worker without masks":
        take_masks_off(whole, ROWS[1])
    case = Case(model.double(), criterion, whole, [rows_of(whole, rows) for rows in ROWS])
    if kind == "mlm, a worker without a batch":
        return replace(case, whole=case.parts[0], parts=[case.parts[0], None])
    return case
