"""Multiple choice: one prediction made of several calls of the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from fairseq.logging import metrics
from support.places import PLUGIN
from support.small_models import make_model, make_sample, make_task
from support.tools import Train, json_log, run_tool
from torch import Tensor, nn

from alum_fairseq.adversarial.divergences import get_divergence
from alum_fairseq.adversarial.gain import mean_size
from alum_fairseq.adversarial.objectives import DivergenceFromClean
from alum_fairseq.criterions.alum_sentence_ranking import (
    AlumSentenceRanking,
    AlumSentenceRankingConfig,
)
from alum_fairseq.encoder.tap import EncoderTap

HEAD = "sentence_classification_head"
CANDIDATES = 3
LARGE = {"alum_epsilon": 0.3, "alum_noise_std": 0.05}


@pytest.fixture
def case() -> tuple[Any, nn.Module, dict[str, Any]]:
    """A task, a model with a head, and a batch of 4 examples with candidates of several lengths."""
    task = make_task(passes_update_number=True)
    model = make_model(task, dropout=0.1)
    model.register_classification_head(HEAD, num_classes=1)
    sample = {"id": torch.arange(4), "ntokens": 60, "nsentences": 4}
    sample["target"] = torch.tensor([0, 2, 1, 1])
    for i, lengths in enumerate([(9, 7, 6, 4), (5, 8, 3, 3), (4, 11, 6, 5)], start=1):
        one = make_sample(task.source_dictionary, lengths, masked=0)
        sample[f"net_input{i}"] = one["net_input"]
    return task, model, sample


def criterion_of(task: Any, **options: Any) -> AlumSentenceRanking:
    return AlumSentenceRanking(AlumSentenceRankingConfig(num_classes=CANDIDATES, **options), task)


def step(criterion: nn.Module, model: nn.Module, sample: dict[str, Any]) -> tuple[Tensor, list]:
    torch.manual_seed(2)
    model.zero_grad()
    loss, _, _ = criterion(model, sample)
    loss.backward()
    return loss.detach().clone(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def scores(model: nn.Module, sample: dict[str, Any]) -> list[Tensor]:
    return [
        model(**sample[f"net_input{i}"], classification_head_name=HEAD)[0]
        for i in range(1, CANDIDATES + 1)
    ]


def test_without_adversary_it_is_fairseqs_criterion_to_the_bit(case: Any) -> None:
    task, model, sample = case
    model.train()
    stock = SentenceRankingCriterion(task, HEAD, None, CANDIDATES)
    loss, gradients = step(stock, model, sample)
    again, ours = step(criterion_of(task, alum_alpha=0.0), model, sample)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, ours))


def test_the_divergence_is_that_of_the_choice(case: Any) -> None:
    """The regulariser equals the symmetric KL of the softmax over candidates, by hand."""
    task, model, sample = case
    model.eval()
    criterion = criterion_of(task, alum_validate=True, **LARGE)
    tap = EncoderTap(model, logits=criterion.problem.logits)
    with tap.recording():
        clean = torch.cat(scores(model, sample), dim=1)
    assert torch.equal(tap.logits, clean)
    adversary = criterion.method.adversary
    climbed = DivergenceFromClean(tap.rerun, tap.logits, get_divergence("kl"))
    generator = torch.Generator().manual_seed(0)
    with tap.ascending():
        delta = adversary.perturb(climbed, tap.embeddings, tap.mask, generator)
    attacked = tap.rerun(tap.embeddings + delta)
    p, q = clean.log_softmax(1), attacked.log_softmax(1)
    symmetric = ((p.exp() - q.exp()) * (p - q)).sum()
    found = criterion(model, sample)[2]["_alum_loss"]
    torch.testing.assert_close(found, symmetric.detach())
    assert found > 0


def test_all_candidates_are_perturbed_together(case: Any) -> None:
    task, model, sample = case
    model.eval()
    tap = EncoderTap(model, logits=criterion_of(task).problem.logits)
    with tap.recording():
        scores(model, sample)
    assert tap.embeddings.shape[:2] == tap.mask.shape == (4, 9 + 8 + 11)
    delta = torch.zeros_like(tap.embeddings)
    delta[:, 9 : 9 + 8] = 0.5  # the second candidate's
    moved = (tap.rerun(tap.embeddings + delta) - tap.logits).abs()
    assert (moved[:, 1] > 1e-4).all()
    assert torch.equal(moved[:, [0, 2]], torch.zeros(4, 2))
    # Of the whole example, not of a candidate, when the norm's scope is a sentence.
    criterion = criterion_of(task, alum_norm="l2", alum_norm_scope="sentence", **LARGE)
    adversary = criterion.method.adversary
    climbed = DivergenceFromClean(tap.rerun, tap.logits, get_divergence("kl"))
    delta = adversary.perturb(climbed, tap.embeddings, tap.mask)
    assert delta[~tap.mask].abs().max() == 0
    parts = delta.split([9, 8, 11], dim=1)
    whole = mean_size(adversary.ball, delta, tap.mask)
    norms = torch.stack([part.flatten(1).norm(dim=1) for part in parts])
    torch.testing.assert_close(norms.square().sum(0).sqrt().mean(), whole)


def test_rerun_uses_the_dropout_masks_of_each_call(case: Any) -> None:
    task, model, sample = case
    model.train()
    tap = EncoderTap(model, logits=criterion_of(task).problem.logits)
    with tap.recording():
        scores(model, sample)
    assert torch.equal(tap.rerun(tap.embeddings), tap.logits)
    tap = EncoderTap(model, dropout="independent", logits=criterion_of(task).problem.logits)
    with tap.recording():
        scores(model, sample)
    assert not torch.equal(tap.rerun(tap.embeddings), tap.logits)


def test_the_regulariser_reaches_every_parameter(case: Any) -> None:
    task, model, sample = case
    model.train()
    criterion = criterion_of(task, alum_alpha=3.0, **LARGE)
    _, plain = step(criterion_of(task, alum_alpha=0.0), model, sample)
    _, ours = step(criterion, model, sample)
    assert all(not torch.equal(a, b) for a, b in zip(plain, ours, strict=True) if b.abs().max() > 0)
    torch.manual_seed(2)
    loss, sample_size, log = criterion(model, sample)
    assert sample_size == 4
    torch.testing.assert_close(loss.detach(), log["loss"] + 3 * log["_alum_loss"])


@pytest.mark.parametrize("labelled", [True, False])
def test_validation_under_attack(case: Any, labelled: bool) -> None:
    task, model, sample = case
    model.eval()
    if not labelled:
        del sample["target"]
    criterion = criterion_of(task, alum_validate=True, **LARGE)
    with torch.no_grad():
        log = criterion(model, sample)[2]
    with metrics.aggregate(new_root=True) as found:
        AlumSentenceRanking.reduce_metrics([log])
    values = found.get_smoothed_values()
    assert ("adv_accuracy" in values) == ("accuracy" in values) == labelled
    assert values["adv_gain"] > 2
    if labelled:
        assert values["adv_task_loss"] != values["loss"]


@pytest.fixture(scope="session")
def choices(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which of three endings goes on? In the layout that fairseq's sentence_ranking reads."""
    folder = tmp_path_factory.mktemp("choices")
    lines = (mlm_data.parent / "train").read_text().splitlines()
    texts = [line.split() for line in lines if len(line.split()) > 40][:60]
    columns = {"input0": [text[:15] for text in texts]}
    for i in range(CANDIDATES):
        columns[f"input{i + 1}"] = [
            (text if n % CANDIDATES == i else texts[n - 7 - i])[15 : 22 + i]
            for n, text in enumerate(texts)
        ]
    for name, column in columns.items():
        (folder / name).write_text("\n".join(map(" ".join, column)) + "\n")
        run_tool(
            *("fairseq-preprocess", "--only-source", "--workers", 1),
            *("--srcdict", mlm_data / "dict.txt", "--destdir", folder / "data" / name),
            *("--trainpref", folder / name, "--validpref", folder / name),
        )
    (folder / "data/label").mkdir()
    for split in ("train", "valid"):
        labels = "".join(f"{n % CANDIDATES}\n" for n in range(len(texts)))
        (folder / f"data/label/{split}.label").write_text(labels)
    return folder / "data"


RANKING = {
    "task": "alum_sentence_ranking",
    "criterion": "alum_sentence_ranking",
    "num_classes": CANDIDATES,
    "sample_break_mode": None,
    "tokens_per_sample": None,
    "max_positions": 64,
    "init_token": 0,
    "separator_token": 2,
    "max_update": 3,
}


def test_end_to_end_with_a_schedule(train: Train, choices: Path, tmp_path: Path) -> None:
    output = train(
        "ranked",
        data=choices,
        **RANKING,
        alum_start_update=1,
        alum_validate=True,
        best_checkpoint_metric="adv_accuracy",
        maximize_best_checkpoint_metric=True,
    ).stdout
    assert ["adv_loss" in line for line in json_log(output, "train_inner")] == [False, True, True]
    assert "valid_adv_accuracy" in json_log(output, "valid")[-1]
    assert (tmp_path / "ranked/checkpoint_best.pt").exists()


def test_the_same_numbers_as_fairseqs_task(train: Train, choices: Path, tmp_path: Path) -> None:
    stock = dict(RANKING, task="sentence_ranking", criterion="sentence_ranking")
    first = train("stock", data=choices, **stock).stdout
    second = train("ours", data=choices, **RANKING, alum_alpha=0).stdout
    losses = [[line["loss"] for line in json_log(out, "train_inner")] for out in (first, second)]
    assert losses[0] == losses[1]
    states = [torch.load(tmp_path / name / "checkpoint_last.pt") for name in ("stock", "ours")]
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name]), name


def test_under_hydra(choices: Path, tmp_path: Path) -> None:
    (tmp_path / "ranking.yaml").write_text(f"""
task: {{_name: alum_sentence_ranking, data: {choices}, num_classes: 3, init_token: 0,
  separator_token: 2, max_positions: 64}}
criterion: {{_name: alum_sentence_ranking, alum_epsilon: 0.2}}
model: {{_name: roberta, encoder_layers: 2, encoder_embed_dim: 32, encoder_ffn_embed_dim: 64,
  encoder_attention_heads: 4}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{max_update: 2, lr: [0.001]}}
dataset: {{batch_size: 8, num_workers: 0}}
checkpoint: {{save_dir: {tmp_path}/saved}}
common: {{cpu: true, user_dir: {PLUGIN}, log_format: json, log_interval: 1}}
""")
    output = run_tool(
        "fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "ranking", cwd=tmp_path
    ).stdout
    losses = [float(loss) for loss in re.findall(r'train_inner.*"adv_loss": "([^"]*)"', output)]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_classes": None}, "--num-classes is -1: give the number of candidates"),
        ({"num_classes": 2}, "--num-classes is 2, but .* has 3 candidates"),
        ({"num_classes": 5}, "--num-classes is 5, but .* has 3 candidates"),
        ({"data": "nowhere"}, "nowhere/input0 does not exist"),
    ],
)
def test_wrong_usage(train: Train, choices: Path, wrong: dict[str, Any], message: str) -> None:
    done = train("no", check=False, **{"data": choices, **RANKING, **wrong})
    assert done.returncode
    assert re.search(rf"^alum_fairseq: error: .*{message}", done.stdout, flags=re.MULTILINE)
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("training", "options"),
    [(True, {}), (True, {"alum_memory": "low"}), (False, {"alum_validate": True})],
)
def test_predictions_are_saved_once_and_are_the_clean_ones(
    training: bool, options: dict[str, Any], case: Any, tmp_path: Path
) -> None:
    """Though a batch passes the criterion a second time in low memory, and under attack."""
    task, model, sample = case
    model.train(training)
    saved = []
    for name, chosen in (("stock", {"alum_alpha": 0.0}), ("ours", {**options, **LARGE})):
        criterion = criterion_of(task, save_predictions=str(tmp_path / name), **chosen)
        torch.manual_seed(2)
        with torch.set_grad_enabled(training):
            loss = criterion(model, sample)[0]
        if training:
            loss.backward()
        criterion.prediction_h.close()
        saved.append((tmp_path / name).read_text().splitlines())
    assert saved[1] == saved[0]
    assert len(saved[1]) == 4
