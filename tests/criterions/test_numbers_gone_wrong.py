"""NaN and infinity, wherever they come up: what is dropped, what is counted, what goes on.

The story: what goes wrong in the adversary costs the update its regulariser, never the run. What
goes wrong without it is fairseq's to handle: where it scales the loss it skips the update, else it
stops before the update is made, so that no checkpoint ever holds it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.tasks import FairseqTask
from support.criteria_cases import Case, make_case
from support.quick_train import mlm_options, start
from support.tools import json_log
from torch import Tensor, nn

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.encoder.tap import sentence_encoder

# The criteria, and one of them with the other way to the same gradients.
KINDS = (
    *(("mlm", "normal"), ("mlm", "low")),
    *(("classification", "normal"), ("regression", "normal"), ("ranking", "normal")),
)


def poison(tensor: Tensor, value: float) -> Tensor:
    """One entry made wrong, for the backward pass as well."""
    factors = torch.ones_like(tensor)
    factors[(0,) * tensor.dim()] = value
    return tensor * factors


Stage = SimpleNamespace  # whose `now` is "clean", "ascent" or "adversarial"


def follow(case: Case, patch: pytest.MonkeyPatch) -> Stage:
    """What the criterion is at; the gain is not measured, so these are all."""
    stage = Stage(now="clean")
    perturb = Adversary.perturb

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        stage.now = "ascent"
        delta = perturb(*args, **kwargs)
        stage.now = "adversarial"
        return delta

    patch.setattr(Adversary, "perturb", noted)
    case.criterion.schedule = replace(case.criterion.schedule, gain_interval=0)
    case.criterion.register_forward_hook(lambda *_: setattr(stage, "now", "clean"))
    return stage


def in_embeddings(case: Case, stage: Stage, when: str, value: float) -> None:
    def hook(layer: nn.Module, args: tuple[Any, ...]) -> Any:
        return (poison(args[0], value), *args[1:]) if stage.now == when else None

    sentence_encoder(case.model).layers[0].register_forward_pre_hook(hook)


def in_logits(case: Case, stage: Stage, when: str, value: float) -> None:
    def hook(model: nn.Module, args: Any, output: Any) -> Any:
        return (poison(output[0], value), *output[1:]) if stage.now == when else None

    case.model.register_forward_hook(hook)


def in_gradient(case: Case, stage: Stage, when: str, value: float) -> None:
    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if stage.now == when and args[0].requires_grad:
            args[0].register_hook(lambda gradient: poison(gradient, value))

    sentence_encoder(case.model).layers[0].register_forward_pre_hook(hook)


def in_perturbation(case: Case, stage: Stage, when: str, value: float) -> None:
    perturb = Adversary.perturb
    Adversary.perturb = lambda *args, **kwargs: poison(perturb(*args, **kwargs), value)


PLACES: dict[str, tuple[Callable[[Case, Stage, str, float], None], str]] = {
    "embeddings of the ascent": (in_embeddings, "ascent"),
    "logits of the ascent": (in_logits, "ascent"),
    "gradient of the ascent": (in_gradient, "ascent"),
    "perturbation": (in_perturbation, "ascent"),
    "embeddings under attack": (in_embeddings, "adversarial"),
    "logits under attack": (in_logits, "adversarial"),
}


def step(case: Case) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Loss, logging output and gradients of the batch."""
    torch.manual_seed(5)
    case.model.zero_grad()
    loss, _, log = case.criterion(case.model, case.whole)
    loss.backward()
    found = {name: p.grad for name, p in case.model.named_parameters() if p.grad is not None}
    return loss.detach(), log, found


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "memory"), KINDS)
def test_what_goes_wrong_in_the_adversary_costs_the_regulariser(
    kind: str, memory: str, place: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(kind, memory)
    inject, when = PLACES[place]
    inject(case, follow(case, monkeypatch), when, value)
    loss, log, gradients = step(case)
    assert log["_alum_attempts"] == 1
    assert log["_alum_skipped"] == 1
    assert log["_alum_sample_size"] == log["_alum_loss"] == log["_alum_norm"] == 0

    plain = make_case(kind, memory)
    plain.criterion.schedule = replace(plain.criterion.schedule, alpha=0.0)
    expected_loss, expected_log, expected = step(plain)
    assert torch.equal(loss, expected_loss)
    assert log["loss"] == expected_log["loss"]
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("place", [in_embeddings, in_logits])
@pytest.mark.parametrize(("kind", "memory"), KINDS)
def test_what_is_wrong_without_the_adversary_stays_to_be_seen(
    kind: str, memory: str, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(kind, memory)
    place(case, follow(case, monkeypatch), "clean", math.nan)
    loss, log, gradients = step(case)
    assert not torch.isfinite(loss)
    assert log["_alum_skipped"] == 1
    assert not all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(torch.isfinite(log[name]) for name in log if name.startswith("_alum"))


# In a run: faults at the third and the fourth update.


def poison_the_adversary() -> None:
    calls = itertools.count()
    perturb = Adversary.perturb

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        delta = perturb(*args, **kwargs)
        return poison(delta, math.nan) if next(calls) in (2, 3) else delta

    Adversary.perturb = poisoned


def poison_the_model() -> None:
    """From the third update on, in every pass."""
    updates = itertools.count()
    train_step = FairseqTask.train_step

    def poisoned(task: Any, sample: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if next(updates) == 2:
            last = sentence_encoder(model).layers[-1]
            last.register_forward_hook(lambda layer, _, output: poison(output, math.nan))
        return train_step(task, sample, model, *args, **kwargs)

    FairseqTask.train_step = poisoned


def checkpoint(folder: Path, name: str = "checkpoint_last.pt") -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(folder / name))


def assert_finite(state: dict[str, Any]) -> None:
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    for moments in state["last_optimizer_state"]["state"].values():
        assert all(torch.isfinite(m).all() for m in moments.values() if isinstance(m, Tensor))


def test_a_run_goes_on_when_its_adversary_goes_wrong(mlm_data: Path, tmp_path: Path) -> None:
    options = mlm_options(mlm_data, tmp_path / "save", max_update=6, log_interval=1)
    output = start(options, tmp_path / "log", poison_the_adversary).wait()
    updates = json_log(output, "train_inner")
    assert [update["adv_skipped"] for update in updates] == [0, 0, 1, 1, 0, 0]
    counted = [update["adv_loss"] is not None for update in updates]
    assert counted == [True, True, False, False, True, True]
    assert all(math.isfinite(float(update["loss"])) for update in updates)
    assert_finite(checkpoint(tmp_path / "save"))


def test_a_run_whose_own_loss_goes_wrong_stops_before_the_update_and_resumes(
    mlm_data: Path, tmp_path: Path
) -> None:
    def options(name: str) -> list[str]:
        return mlm_options(mlm_data, tmp_path / name, max_update=4, save_interval_updates=1)

    stopped = start(options("save"), tmp_path / "log", poison_the_model)
    output = stopped.wait(check=False)
    assert stopped.process.exitcode == 1
    assert "FloatingPointError: gradients are Nan/Inf" in output
    assert output.strip().splitlines()[-1].startswith("FloatingPointError")
    last = checkpoint(tmp_path / "save")
    assert last["optimizer_history"][-1]["num_updates"] == 2
    assert_finite(last)
    # fairseq says where it began.
    assert "NaN detected in output of encoder.sentence_encoder.layers.1" in output
    # The same command goes on from there, as if nothing had happened.
    start(options("save"), tmp_path / "log").wait()
    start(options("whole"), tmp_path / "log").wait()
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "save")
    assert all(torch.equal(whole["model"][name], w) for name, w in resumed["model"].items())
