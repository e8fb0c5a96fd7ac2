"""The options: those that are gone, those without an effect, and what is watched for the user."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.one_batch import LARGE, TASKS, make_case, step

from alum_fairseq import Adversary, Preset, UsageError
from alum_fairseq.adversarial.gain import random_like
from alum_fairseq.adversarial.method import perturbed
from alum_fairseq.adversarial.schedule import Schedule
from alum_fairseq.criterions.alum_mlm import AlumMlmConfig
from alum_fairseq.criterions.options import GONE, AlumConfig
from alum_fairseq.criterions.watch import Watch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alum_ascent": "sampled-label"}, "--alum-ascent is gone: .*--alum-fraction"),
        ({"alum_ascent_precision": "bf16"}, "--alum-ascent-precision is gone: give --amp, "),
        ({"alum_interval": 4}, "--alum-interval is gone: give --alum-fraction"),
        ({"alum_layer": 1}, "--alum-layer is gone: give --alum-site, with the layer's number"),
        ({"alum_step_layers": 1}, "--alum-step-layers is gone: leave it out"),
    ],
)
def test_an_option_that_is_gone_names_its_successor(options: dict[str, Any], message: str) -> None:
    criterion = make_case("mlm")[2]
    for cfg in (options, OmegaConf.merge(AlumMlmConfig(tpu=False), options)):
        given = {name: cfg[name] for name in options}
        with pytest.raises(UsageError, match=message):
            criterion(**given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alum_projection": "none", "alum_epsilon": 0.1}, "--alum-epsilon has no effect with "),
        (
            {"alum_preset": "fgm", "alum_noise_std": 0.1},
            "--alum-noise-std has no effect with --alum-start zero",
        ),
        (
            {"alum_preset": "vat", "alum_projection": "clip"},
            "--alum-projection has no effect with --alum-step-size inf",
        ),
        ({"alum_steps": 0, "alum_step_size": 0.1}, "--alum-step-size has no effect with "),
        ({"alum_steps": 0, "alum_gradient": "raw"}, "--alum-gradient has no effect with "),
    ],
)
def test_an_option_that_others_leave_without_effect_is_named(
    options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    criterion = make_case("mlm")[2]
    criterion()
    assert "has no effect" not in caplog.text
    criterion(**options)
    assert said in caplog.text


# Of each preset, what its line in the log does not name.
IDLE = {
    "calibrated": {"proximal"},
    "vat": {"proximal", "projection"},
    "r3f": {"proximal", "epsilon", "step_size", "gradient", "objective"},
    "smart": set(),
    "fgm": {"proximal", "sides", "memory", "noise_std"},
    "pgd": {"proximal", "sides", "memory"},
    "freelb": {"proximal", "sides", "memory", "alpha", "warmup_updates"},
    "freelb++": {"proximal", "sides", "memory", "alpha", "warmup_updates", "epsilon"},
}


@pytest.mark.parametrize("preset", IDLE)
def test_the_log_names_what_has_an_effect(preset: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make_case("mlm")[2](alum_preset=preset)
    [line] = [message for message in caplog.messages if message.startswith("ALUM: preset=")]
    named = {word.split("=")[0] for word in line.removeprefix("ALUM: ").split()}
    options = {f.name for f in fields(AlumConfig) if f.name.startswith("alum_")} - GONE.keys()
    assert {name.removeprefix("alum_") for name in options} - named == IDLE[preset]
    assert ("noise_std=by-precision" in line) == (preset in ("calibrated", "vat"))


def test_no_steps_from_no_start_are_refused() -> None:
    with pytest.raises(UsageError, match="--alum-steps is 0: it must be 1 or more where start is"):
        make_case("mlm")[2](alum_preset="fgm", alum_steps=0)


def test_a_checkpoint_of_before_holds_their_defaults() -> None:
    make_case("mlm")[2](**{name: default for name, (default, _) in GONE.items()})


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("calibrated", {"alum_proximal": 1.0}, "--alum-proximal is 1.0"),
        ("fgm", {"alum_memory": "low"}, "--alum-memory is low"),
        ("fgm", {"alum_sides": "adversarial"}, "--alum-sides is adversarial"),
        ("pgd", {"alum_proximal": 1.0}, "--alum-proximal is 1.0"),
        ("freelb", {"alum_alpha": 2.0}, "--alum-alpha is 2.0"),
        ("freelb", {"alum_warmup_updates": 3}, "--alum-warmup-updates is 3"),
        ("freelb++", {"alum_memory": "low"}, "--alum-memory is low"),
    ],
)
def test_an_option_without_an_effect_is_refused(
    preset: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        make_case("mlm")[2](alum_preset=preset, **options)
    wanted = f"{message}, but has no effect with --alum-preset {preset}: leave it out"
    assert str(error.value) == wanted


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("freelb", {"alum_alpha": 0.0}),  # off
        ("fgm", {"alum_memory": "normal"}),
        ("smart", {"alum_proximal": 2.0, "alum_memory": "low"}),
    ],
)
def test_an_option_with_an_effect_is_taken(preset: str, options: dict[str, Any]) -> None:
    make_case("mlm")[2](alum_preset=preset, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alum_fraction": 0.0}, "--alum-fraction is 0.0: it must be above 0 and at most 1"),
        ({"alum_fraction": 1.5}, "--alum-fraction is 1.5"),
        ({"alum_preset": "x"}, "--alum-preset is 'x': it must be one of calibrated, paper, "),
        ({"alum_norm": "x"}, "--alum-norm is 'x': it must be one of linf, l2"),
        ({"alum_divergence": "x"}, "--alum-divergence is 'x': it must be one of kl, "),
        ({"alum_site": "x"}, "--alum-site is 'x': it must be words, embeddings, or the number"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_case("mlm")[2](**options)
    assert message in str(error.value)


# The random start.


@pytest.mark.parametrize(
    ("noise_std", "dtype", "warned"),
    [
        (1e-5, torch.bfloat16, True),
        (1e-5, torch.float32, False),
        (None, torch.bfloat16, False),
        (None, torch.float16, False),
        (4 / 128, torch.bfloat16, False),
    ],
)
def test_a_start_survives_where_a_unit_of_rounding_is_smaller(
    noise_std: float | None, dtype: torch.dtype, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(Preset(adversary=Adversary(noise_std=noise_std)))
    embeddings, mask = torch.randn(2, 3, 64).to(dtype), torch.ones(2, 3, dtype=torch.bool)
    watch.start(embeddings, mask)
    found = [r for r in caplog.records if "is rounded away in bfloat16" in r.getMessage()]
    assert len(found) == len(caplog.records) == warned


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"alum_noise_std": 1e-5}, True),
        ({"alum_preset": "paper"}, True),
        ({}, False),
        ({"alum_noise_std": 1e-5, "alum_objective": "task-loss"}, False),
        ({"alum_noise_std": 1e-5, "alum_steps": 0}, False),
    ],
)
def test_a_start_that_is_rounded_away_is_said_once(
    options: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, sample, criterion = make_case("mlm")
    model.float()
    criterion = criterion(**options)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            step(criterion, model, sample)
    found = [r for r in caplog.records if "is rounded away in bfloat16" in r.getMessage()]
    assert len(found) == warned
    caplog.clear()
    step(make_case("mlm")[2](alum_preset="paper"), model, sample)  # float32
    assert not [r for r in caplog.records if "rounded away" in r.getMessage()]


# The schedule.


def test_the_schedule_written_out() -> None:
    schedule = Schedule(8.0, start_update=10, warmup_updates=4, gain_interval=3)
    found = [schedule.alpha_at(update) for update in (0, 9, 10, 11, 13, 14, 100)]
    assert found == [0, 0, 0, 2, 6, 8, 8]
    due = [
        update
        for update in range(20)
        if schedule.gain_measurements_before(update + 1) > schedule.gain_measurements_before(update)
    ]
    assert due == [10, 13, 16, 19]
    assert Schedule(1.0).gain_measurements_before(50) == 0


# The task's loss as the objective.


@pytest.mark.parametrize("kind", TASKS)
def test_the_task_loss_is_climbed_at_every_step(kind: str) -> None:
    """It rises by every step, more than along a random direction."""
    model, sample, make = make_case(kind, dropout=0.0)
    model.train()
    losses = []
    for steps in (1, 3):
        options = {**LARGE, "alum_objective": "task-loss", "alum_steps": steps}
        criterion = make(alum_alpha=1e-9, **options)
        update = criterion._batch(model, sample, True).update()
        clean = update.clean("whole")
        torch.manual_seed(4)
        delta = criterion.method.perturb(update, clean)
        random = random_like(criterion.method.adversary.ball, delta, clean.mask)
        found, by_chance = (
            update.task_loss(perturbed(clean.embeddings, d)).item() for d in (delta, random)
        )
        assert found > clean.loss.item()
        assert found > by_chance
        losses.append(found)
    assert losses[1] > losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"alum_objective": "task-loss"},
        {"alum_divergence": "squared_error"},
        {"alum_divergence": "squared_error", "alum_objective": "task-loss"},
        {"alum_divergence": "jensen_shannon", "alum_memory": "low"},
        *({"alum_preset": name} for name in ("vat", "r3f", "fgm", "pgd", "freelb")),
    ],
    ids=str,
)
def test_where_nothing_is_masked(options: dict[str, Any]) -> None:
    """fairseq then projects all tokens; none of them counts."""
    model, sample, criterion = make_case("mlm")
    sample["target"].fill_(1)
    loss, log, _ = step(criterion(**options), model, sample)
    assert loss == 0
    assert log["_alum_loss"] == 0


# Passes.


@pytest.mark.parametrize(
    ("preset", "passes"),
    [
        *(("calibrated", 3), ("vat", 3), ("r3f", 2), ("smart", 3)),
        *(("fgm", 2), ("pgd", 5), ("freelb", 5), ("freelb++", 12)),
    ],
)
def test_every_method_makes_so_many_passes(preset: str, passes: int) -> None:
    """FGM's ascent needs none of its own: its gradient is the clean pass's."""
    model, sample, make = make_case("mlm")
    options = {"alum_proximal": 0.0} if preset == "smart" else {}
    made: list[int] = []
    model.register_forward_hook(lambda *_: made.append(1))
    step(make(alum_preset=preset, alum_log_gain_interval=0, **options), model, sample)
    assert len(made) == passes


def test_the_settings_of_a_method_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make_case("mlm")[2](alum_preset="freelb")
    [message] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("ALUM:")]
    for part in ("preset=freelb", "method=freelb", "site=words", "start=uniform", "steps=3"):
        assert part in message
