"""Fine-tuning: classification and regression through the mechanism that all criteria share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.logging import metrics
from support.options import SMALL_MODEL
from support.places import PLUGIN
from support.quick_train import in_two_processes
from support.small_models import make_model, make_sample, make_task
from support.tools import Train, json_log, run_tool
from torch import Tensor, nn

from alum_fairseq import UsageError
from alum_fairseq.criterions.alum_sentence_prediction import (
    AlumSentencePrediction,
    AlumSentencePredictionConfig,
)

HEAD = "sentence_classification_head"
LARGE = {"alum_epsilon": 0.3, "alum_noise_std": 0.05}
METRICS = {
    "classification": {"report_mcc": True, "report_acc_and_f1": True},
    "regression": {"report_pearson_and_spearman": True},
}


@pytest.fixture(params=sorted(METRICS))
def case(request: pytest.FixtureRequest) -> tuple[Any, nn.Module, dict[str, Any], dict[str, Any]]:
    """A task, a model with a head, a batch and the criterion's options."""
    regression = request.param == "regression"
    task = make_task(passes_update_number=True)
    task.label_dictionary = type(task.source_dictionary)()
    for label in "01":
        task.label_dictionary.add_symbol(label)
    model = make_model(task, dropout=0.1)
    model.register_classification_head(HEAD, num_classes=1 if regression else 2)
    sample = make_sample(task.source_dictionary, lengths=(9, 7, 6, 4), masked=0)
    sample["target"] = torch.tensor([[0.5], [1.5], [1.0], [0.1]])
    if not regression:
        sample["target"] = torch.tensor([[0], [1], [1], [0]])
    return task, model, sample, {"regression_target": regression, **METRICS[request.param]}


def step(criterion: nn.Module, model: nn.Module, sample: dict[str, Any]) -> tuple[Tensor, list]:
    torch.manual_seed(2)
    model.zero_grad()
    loss, _, _ = criterion(model, sample)
    loss.backward()
    return loss.detach().clone(), [p.grad for p in model.parameters() if p.grad is not None]


def test_without_adversary_it_is_fairseqs_criterion_to_the_bit(case: Any) -> None:
    task, model, sample, options = case
    model.train()
    stock = SentencePredictionCriterion(SentencePredictionConfig(**options), task)
    ours = AlumSentencePrediction(AlumSentencePredictionConfig(alum_alpha=0.0, **options), task)
    loss, gradients = step(stock, model, sample)
    gradients = [g.clone() for g in gradients]
    again, ours_gradients = step(ours, model, sample)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, ours_gradients))


def test_the_regulariser_is_added(case: Any) -> None:
    task, model, sample, options = case
    model.train()
    criterion = AlumSentencePrediction(
        AlumSentencePredictionConfig(alum_alpha=3.0, **LARGE, **options), task
    )
    regression = options["regression_target"]
    assert criterion.preset.divergence == ("squared_error" if regression else "kl")
    loss, _, log = criterion(model, sample)
    assert log["_alum_loss"] > 0
    torch.testing.assert_close(loss.detach(), log["loss"] + 3 * log["_alum_loss"])
    loss.backward()
    assert model.encoder.sentence_encoder.embed_tokens.weight.grad.abs().sum() > 0


def test_every_metric_has_its_counterpart_under_attack(case: Any) -> None:
    task, model, sample, options = case
    model.eval()
    criterion = AlumSentencePrediction(
        AlumSentencePredictionConfig(alum_validate=True, **LARGE, **options), task
    )
    with torch.no_grad():
        log = criterion(model, sample)[2]
    stock = SentencePredictionCriterion(SentencePredictionConfig(**options), task)
    with metrics.aggregate(new_root=True) as clean:
        SentencePredictionCriterion.reduce_metrics([stock(model, sample)[2]])
    with metrics.aggregate(new_root=True) as ours:
        AlumSentencePrediction.reduce_metrics([log])
    clean, ours = clean.get_smoothed_values(), ours.get_smoothed_values()
    for name, value in clean.items():
        if name not in ("pred", "targ"):
            assert ours[name] == pytest.approx(value, nan_ok=True)
            assert ("adv_task_loss" if name == "loss" else f"adv_{name}") in ours
    assert ours["adv_task_loss"] != ours["loss"]


def test_a_distributions_divergence_is_refused_for_regression() -> None:
    with pytest.raises(UsageError, match="--alum-divergence is kl: for regression"):
        AlumSentencePrediction(
            AlumSentencePredictionConfig(regression_target=True, alum_divergence="kl"),
            make_task(label_dictionary=None),
        )


@pytest.fixture(scope="module")
def data(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Does a text have "the" among its first words? In fairseq's layout."""
    folder = tmp_path_factory.mktemp("sentences")
    lines = (mlm_data.parent / "train").read_text().splitlines()
    texts = [line for line in lines if len(line.split()) > 10][:80]
    for name, column in {
        "input0": [" ".join(text.split()[:30]) for text in texts],
        "label": ["1" if "the" in text.split()[:5] else "0" for text in texts],
    }.items():
        (folder / name).write_text("\n".join(column) + "\n")
        dictionary = ("--srcdict", mlm_data / "dict.txt") if name == "input0" else ()
        run_tool(
            *("fairseq-preprocess", "--only-source", "--workers", 1, *dictionary),
            *("--trainpref", folder / name, "--validpref", folder / name),
            *("--destdir", folder / "data" / name),
        )
    return folder / "data"


FINETUNING = {
    "task": "alum_sentence_prediction",
    "criterion": "alum_sentence_prediction",
    "sample_break_mode": None,
    "tokens_per_sample": None,
    "max_positions": SMALL_MODEL["max-positions"],
    "num_classes": 2,
    "init_token": 0,
    "alum_validate": True,
}


def test_fine_tuning_a_checkpoint_with_a_schedule(train: Train, data: Path, tmp_path: Path) -> None:
    train("pretrained", max_update=2, disable_validation=True)
    output = train(
        "finetuned",
        data=data,
        **FINETUNING,
        restore_file=tmp_path / "pretrained/checkpoint_last.pt",
        reset_optimizer=True,
        reset_dataloader=True,
        reset_meters=True,
        alum_start_update=2,
        best_checkpoint_metric="adv_accuracy",
        maximize_best_checkpoint_metric=True,
    ).stdout
    assert "adv_accuracy" in output
    assert output.count('"adv_loss"') == 2
    assert (tmp_path / "finetuned/checkpoint_best.pt").exists()


# fairseq gathers what cannot be summed by way of a GPU's memory.
WITHOUT_GPU = f"""\
import sys
import torch
sys.path.insert(0, {str(PLUGIN.parent)!r})
torch.cuda.ByteTensor = torch.ByteTensor
torch.Tensor.pin_memory = lambda self, *_: self
import alum_fairseq
"""


def test_metrics_of_predictions_on_two_ranks(train: Train, data: Path, tmp_path: Path) -> None:
    """F1 and MCC are made of all predictions; fairseq's own criterion fails to add up lists."""
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin/__init__.py").write_text(WITHOUT_GPU)
    options = {
        **FINETUNING,
        **{"data": data, "report_mcc": True, "report_acc_and_f1": True, "max_valid_steps": None},
        **{"lr": 0, "max_update": 1, "required_batch_size_multiple": 1, "no_save": True},
        **{"user_dir": tmp_path / "plugin", "batch_size_valid": 6},
    }
    alone = json_log(train("alone", **options).stdout, "valid")[-1]
    first, _ = in_two_processes(lambda **rank: train("two", **options, **rank))
    together = json_log(first.stdout, "valid")[-1]
    for name in ("mcc", "f1", "acc_and_f1", "adv_mcc", "adv_f1", "accuracy", "loss"):
        found, expected = (float(log[f"valid_{name}"]) for log in (together, alone))
        assert found == pytest.approx(expected, abs=0.02), name
