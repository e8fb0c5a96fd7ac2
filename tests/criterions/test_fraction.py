"""``--alum-fraction``: a random part of each batch is perturbed, the rest is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from support.one_batch import HEAD, LARGE, TASKS, make_case, step
from support.small_models import make_task
from torch import Tensor

from alum_fairseq.criterions.batches import merge_logs, split_rows

# An adversary without anything random.
FIXED = {"alum_start": "zero", "alum_noise_std": None, "alum_objective": "task-loss"}


@pytest.mark.parametrize("kind", TASKS)
def test_a_part_of_the_batch_is_the_regulariser_of_that_part(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sample, criterion = make_case(kind, dropout=0.0)
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor([2, 0, 3, 1]))
    options = {**LARGE, **FIXED}
    loss, log, gradients = step(
        criterion(alum_alpha=3.0, alum_fraction=0.5, **options), model, sample
    )
    plain = step(criterion(alum_alpha=0.0), model, sample)
    part, rest = split_rows(sample, torch.tensor([2, 0]))
    with_part = step(criterion(alum_alpha=6.0, **options), model, part)
    without = step(criterion(alum_alpha=0.0), model, rest)
    torch.testing.assert_close(loss, with_part[0] + without[0], rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        expected = with_part[2][name] + without[2][name]
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    # What is logged is the whole batch's.
    for key in plain[1]:
        if not key.startswith("_alum"):
            assert float(log[key]) == pytest.approx(float(plain[1][key]), rel=1e-5), key
    assert log["_alum_loss"] == with_part[1]["_alum_loss"]
    assert log["_alum_sample_size"] == with_part[1]["_alum_sample_size"]


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_beside_a_part_spectral_normalisation_moves_once(memory: str) -> None:
    model, sample, criterion = make_case(
        "classification", dropout=0.0, spectral_norm_classification_head=True
    )
    vectors = []
    for options in ({"alum_alpha": 0.0}, {"alum_fraction": 0.5, "alum_memory": memory, **LARGE}):
        again = copy.deepcopy(model)
        step(criterion(**options), again, sample)
        vectors.append(again.classification_heads[HEAD].out_proj.weight_u)
    assert torch.equal(*vectors)
    assert not torch.equal(vectors[0], model.classification_heads[HEAD].out_proj.weight_u)


def test_beside_a_part_quantisation_noise_comes_once() -> None:
    model, sample, criterion = make_case("mlm", quant_noise_pq=0.5, quant_noise_pq_block_size=1)
    step(criterion(alum_fraction=0.5), model, sample)
    weight = model.encoder.sentence_encoder.layers[0].fc1.weight
    assert (weight == 0).double().mean() == pytest.approx(0.5, abs=0.1)  # twice: 0.75


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_beside_a_part_the_parameters_are_penalised_once(memory: str) -> None:
    factors = {"mha_reg_scale_factor": 1.0, "ffn_reg_scale_factor": 0.5}
    model, sample, criterion = make_case("classification", dropout=0.0, **factors)
    loss, log, gradients = step(criterion(alum_alpha=0.0), model, sample)
    options = {"alum_alpha": 1e-9, "alum_fraction": 0.5, "alum_memory": memory}
    in_part = step(criterion(**options), model, sample)
    assert float(in_part[0]) == pytest.approx(float(loss))
    for name in ("mha_reg_loss", "ffn_reg_loss"):
        assert float(in_part[1][name].detach()) == pytest.approx(float(log[name].detach()))
    torch.testing.assert_close(in_part[2], gradients, rtol=1e-5, atol=1e-6)
    assert {name: getattr(model.args, name) for name in factors} == factors


@pytest.mark.parametrize("fraction", [0.25, 0.4, 0.9])
def test_on_average_the_part_is_what_was_asked_for(
    fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sequence is in it equally often, so that 1 / fraction times its loss is unbiased."""
    model, sample, criterion = make_case("classification", dropout=0.0)
    criterion = criterion(alum_fraction=fraction, alum_log_gain_interval=0)
    chosen = torch.zeros(4)

    def forward(model: Any, part: dict[str, Any], *_: Any) -> tuple[Tensor, int, dict[str, Any]]:
        chosen[part["id"]] += 1
        return torch.zeros(()), 0, {}

    monkeypatch.setattr(criterion, "_forward_with_adversary", forward)
    model.train()
    for _ in range(800):
        criterion(model, sample)
    torch.testing.assert_close(chosen / 800, torch.full((4,), fraction), atol=0.06, rtol=0)


def test_in_validation_the_whole_batch_is_attacked() -> None:
    model, sample, criterion = make_case("mlm", dropout=0.0)
    model.eval()
    logs = [
        criterion(alum_fraction=f, alum_validate=True, **LARGE)(model, sample)[2] for f in (1, 0.25)
    ]
    assert logs[0]["_alum_loss"] == logs[1]["_alum_loss"] > 0


def test_a_batch_is_cut_in_two() -> None:
    _, sample, _ = make_case("ranking")
    part, rest = split_rows(sample, torch.tensor([3, 1]))
    assert part["id"].tolist() == [3, 1]
    assert rest["id"].tolist() == [0, 2]
    for name in ("net_input1", "net_input2"):
        whole = sample[name]["src_tokens"]
        assert torch.equal(part[name]["src_tokens"], whole[[3, 1]])
        assert torch.equal(rest[name]["src_lengths"], sample[name]["src_lengths"][[0, 2]])
    assert (part["nsentences"], rest["nsentences"]) == (2, 2)
    assert part["ntokens"] + rest["ntokens"] == sample["ntokens"]


def test_what_belongs_to_no_row_stays_whole() -> None:
    """Such as weights of the classes, of which there are as many as sentences."""
    _, sample, _ = make_case("classification")
    sample["class_weights"] = torch.arange(float(sample["nsentences"]))
    for part in split_rows(sample, torch.tensor([3, 1])):
        assert torch.equal(part["class_weights"], sample["class_weights"])


def test_logs_of_parts_add_up() -> None:
    assert merge_logs([{"a": 1, "b": torch.tensor(2.0)}, {"a": 3, "c": 1}]) == {
        "a": 4,
        "b": 2,
        "c": 1,
    }


def test_a_gain_that_is_due_is_measured_in_the_next_batch_that_is_attacked() -> None:
    model, sample, criterion = make_case("mlm")
    criterion = criterion(alum_fraction=0.2, alum_log_gain_interval=4)
    sample, _ = split_rows(sample, torch.tensor([0]))
    model.train()
    attacked, measured = [], []
    torch.manual_seed(3)
    for update in range(60):
        criterion.prepare_update(update)
        log = criterion(model, sample)[2]
        attacked += [update] * int(log["_alum_batches"])
        measured += [update] * int(log["_alum_gain_measured"])
    # Of the attacked ones, the first after each due update.
    expected = {min([u for u in attacked if u >= due], default=None) for due in range(0, 60, 4)}
    assert measured == sorted(expected - {None})
    assert any(update % 4 for update in measured)


def test_stock_classification_without_the_adversary() -> None:
    """The criterion that the rest of the batch falls back to."""
    model, sample, criterion = make_case("classification")
    task = make_task(passes_update_number=True)
    task.label_dictionary = task.source_dictionary
    stock = SentencePredictionCriterion(
        SentencePredictionConfig(classification_head_name=HEAD, regression_target=False), task
    )
    expected = step(stock, model, sample)
    got = step(criterion(alum_alpha=0.0), model, sample)
    assert torch.equal(got[0], expected[0])
