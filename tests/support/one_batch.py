"""A criterion of every kind with a model and one batch, and what an update makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.criterions.alum_sentence_prediction import (
    AlumSentencePrediction,
    AlumSentencePredictionConfig,
)
from alum_fairseq.criterions.alum_sentence_ranking import (
    AlumSentenceRanking,
    AlumSentenceRankingConfig,
)
from support.small_models import make_model, make_sample, make_task
from support.token_cases import TOKENS, criterion_of, make_tokens

HEAD = "sentence_classification_head"
LARGE = {"alum_epsilon": 0.3, "alum_noise_std": 0.05, "alum_step_size": 0.2}
RECORDED = ("mlm", "classification", "regression", "ranking")
TASKS = (*RECORDED, *TOKENS)

Case = tuple[nn.Module, dict[str, Any], Callable[..., Any]]


def make_case(kind: str, **model_options: Any) -> Case:
    """A model in float64, a batch with padding, and what makes a criterion of given options."""
    task = make_task(passes_update_number=True, passes_ema_model=True)
    task.label_dictionary = task.source_dictionary
    # fairseq's gelu computes in float32, whatever the model is in.
    model = make_model(task, **{"dropout": 0.1, "activation_fn": "tanh", **model_options}).double()
    sample = make_sample(task.source_dictionary, (9, 7, 6, 4), masked=2 if kind == "mlm" else 0)
    if kind == "mlm":
        return model, sample, lambda **o: AlumMlm(AlumMlmConfig(tpu=False, **o), task)
    if kind in TOKENS:
        make_tokens(kind, model, sample)
        return model.double(), sample, criterion_of(kind, task)
    if kind == "ranking":
        model.register_classification_head(HEAD, num_classes=1)
        model.double()
        other = make_sample(task.source_dictionary, (5, 8, 3, 3), masked=0)
        sample |= {"net_input1": sample.pop("net_input"), "net_input2": other["net_input"]}
        sample["target"] = torch.tensor([0, 1, 1, 0])
        return (
            model,
            sample,
            lambda **o: AlumSentenceRanking(AlumSentenceRankingConfig(num_classes=2, **o), task),
        )
    regression = kind == "regression"
    model.register_classification_head(HEAD, num_classes=1 if regression else 3)
    sample["target"] = torch.tensor([[0], [2], [1], [0]])
    if regression:
        sample["target"] = torch.tensor([[0.5], [1.5], [1.0], [0.1]])
    model.double()

    def criterion(**options: Any) -> AlumSentencePrediction:
        cfg = AlumSentencePredictionConfig(regression_target=regression, **options)
        return AlumSentencePrediction(cfg, task)

    return model, sample, criterion


def step(
    criterion: nn.Module, model: nn.Module, sample: dict[str, Any], factor: float = 1.0
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Loss, logging output and gradients of one batch, from one state of the random numbers."""
    model.train()
    torch.manual_seed(2)
    model.zero_grad()
    loss, _, log = criterion(model, sample)
    (loss * factor).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach().clone(), log, gradients


def assert_same(got: Any, expected: Any) -> None:
    # The task's loss is taken in float32 by fairseq, whatever the model is in.
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
