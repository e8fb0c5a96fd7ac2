"""The criterion: its loss and gradients, its options one by one, its metrics."""

from __future__ import annotations

import copy
import logging
import math
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.logging import metrics
from support.small_models import make_model, make_sample, make_task
from torch import Tensor, nn

from alum_fairseq import PRESETS, Adversary, UsageError
from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.criterions.watch import LOW_GAIN_MEASUREMENTS, Watch
from alum_fairseq.encoder.tap import EncoderTap

# Large enough for every option to show, on a model that was never trained.
LARGE = {"alum_epsilon": 0.3, "alum_noise_std": 0.05, "alum_step_size": 0.2}


def make_criterion(task: Any = None, **options: Any) -> AlumMlm:
    return AlumMlm(AlumMlmConfig(tpu=False, **options), task or make_task())


@pytest.fixture
def task() -> Any:
    return make_task(passes_update_number=True)


@pytest.fixture
def sample(task: Any) -> dict[str, Any]:
    return make_sample(task.source_dictionary)


def step(
    criterion: nn.Module, model: nn.Module, sample: dict[str, Any], seed: int = 2
) -> tuple[Tensor, dict[str, Any], list[Tensor]]:
    """Loss, logging output and gradients of one batch."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss, _, logging_output = criterion(model, sample)
    if loss.requires_grad:
        loss.backward()
    # `loss` may share its memory with the logging output.
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return loss.detach().clone(), logging_output, gradients


@pytest.fixture
def perturbations(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the adversary found, batch by batch."""
    found: list[Tensor] = []
    perturb = Adversary.perturb
    monkeypatch.setattr(
        Adversary, "perturb", lambda *a, **k: found.append(perturb(*a, **k)) or found[-1]
    )
    return found


# Off: stock fairseq to the bit.


@pytest.mark.parametrize(
    "options",
    [
        {"alum_alpha": 0.0},
        {"alum_start_update": 10},
        {"alum_warmup_updates": 10},  # alpha is still 0 at the first update
    ],
)
def test_without_adversary_it_is_fairseqs_criterion_to_the_bit(
    options: dict[str, Any], task: Any, sample: dict[str, Any]
) -> None:
    model = make_model(task, dropout=0.1).train()
    expected = step(MaskedLmLoss(MaskedLmConfig(tpu=False), task), model, sample)
    after = torch.rand(3)
    got = step(make_criterion(task, **options), model, sample)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(got[0], expected[0])
    assert all(map(torch.equal, got[2], expected[2]))
    assert {k: v for k, v in got[1].items() if not k.startswith("_alum")} == expected[1]
    assert not any(v for k, v in got[1].items() if k.startswith("_alum"))


def test_the_logged_loss_stays_the_tasks_own(task: Any, sample: dict[str, Any]) -> None:
    model = make_model(task, dropout=0.1).train()
    stock_loss, _, _ = step(MaskedLmLoss(MaskedLmConfig(tpu=False), task), model, sample)
    loss, log, _ = step(make_criterion(task, alum_alpha=3.0, **LARGE), model, sample)
    assert torch.equal(log["loss"], stock_loss)
    torch.testing.assert_close(loss, stock_loss + 3 * log["_alum_loss"])
    assert log["_alum_loss"] > 0


# On: the gradient of the whole loss, by finite differences in float64.


def naive_logits(model: nn.Module, sample: dict[str, Any], delta: Tensor | None) -> Tensor:
    """The network written out: embeddings, perturbation, layers, head at masked positions."""
    encoder = model.encoder.sentence_encoder
    tokens = sample["net_input"]["src_tokens"]
    padding = tokens.eq(encoder.padding_idx)
    x = encoder.embed_tokens(tokens) + encoder.embed_positions(tokens)
    x = encoder.layernorm_embedding(x) * ~padding.unsqueeze(-1)
    if delta is not None:
        x = x + delta
    x = x.transpose(0, 1)
    for layer in encoder.layers:
        x = layer(x, encoder_padding_mask=padding)
    return model.encoder.lm_head(x.transpose(0, 1)[sample["target"].ne(encoder.padding_idx)])


@pytest.mark.parametrize("divergence", ["kl", "jensen_shannon"])
def test_gradient_of_the_whole_loss_equals_finite_differences(
    divergence: str, task: Any, sample: dict[str, Any], perturbations: list[Tensor]
) -> None:
    # fairseq's gelu computes in float32; the difference needs float64 throughout.
    model = make_model(task, activation_fn="tanh").double().train()
    criterion = make_criterion(task, alum_alpha=2.0, alum_divergence=divergence, **LARGE)
    loss, _, _ = step(criterion, model, sample)
    [delta] = perturbations
    targets = sample["target"][sample["target"].ne(1)]
    with torch.no_grad():
        fixed_clean = naive_logits(model, sample, None).softmax(-1)
        fixed_adversarial = naive_logits(model, sample, delta).softmax(-1)

    def whole_loss() -> float:
        with torch.no_grad():
            clean = naive_logits(model, sample, None)
            c, a = clean.softmax(-1), naive_logits(model, sample, delta).softmax(-1)
            task_loss = nn.functional.cross_entropy(clean, targets, reduction="sum")
            if divergence == "kl":
                regularizer = (a * (a / fixed_clean).log()).sum()
                regularizer += (c * (c / fixed_adversarial).log()).sum()
            else:
                m = (a + c) / 2
                regularizer = 0.5 * ((a * (a / m).log()).sum() + (c * (c / m).log()).sum())
            return (task_loss + 2 * regularizer).item()

    # fairseq takes the log-softmax of the task's loss in float32, whatever the model is in.
    assert loss.item() == pytest.approx(whole_loss(), rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.startswith("classification_heads"):
            continue
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in torch.randint(len(flat), (4,), generator=generator).tolist():
            value, h = flat[index].item(), 1e-5
            flat[index] = value + h
            above = whole_loss()
            flat[index] = value - h
            below = whole_loss()
            flat[index] = value
            difference = (above - below) / (2 * h)
            assert gradient[index].item() == pytest.approx(difference, rel=1e-4, abs=1e-6), name


# Options, one by one: each changes the loss, and would not if it were disconnected.


@pytest.mark.parametrize(
    "option",
    [
        *({"alum_preset": name} for name in sorted(PRESETS) if name not in ("calibrated", "smart")),
        {"alum_alpha": 2.0},
        {"alum_steps": 2},
        {"alum_epsilon": 0.15},
        {"alum_epsilon_mode": "absolute"},
        {"alum_step_size": 0.4},
        {"alum_noise_std": 0.1},
        {"alum_norm": "l2"},
        {"alum_norm_scope": "token"},
        {"alum_gradient": "raw"},
        {"alum_gradient": "steepest"},
        {"alum_start": "uniform"},
        {"alum_objective": "task-loss"},
        {"alum_steps": 0},
        {"alum_fraction": 0.5},
        {"alum_projection": "clip"},
        {"alum_projection": "none"},
        {"alum_divergence": "reverse_kl"},
        {"alum_divergence": "symmetric_kl"},
        {"alum_divergence": "jensen_shannon"},
        {"alum_divergence": "squared_hellinger"},
        {"alum_divergence": "squared_error"},
        {"alum_sides": "adversarial"},
        {"alum_site": "words"},
        {"alum_site": "1"},
        {"alum_dropout": "independent"},
        {"alum_start_update": 5},
        {"alum_warmup_updates": 5},
    ],
    ids=str,
)
def test_every_option_changes_the_loss(
    option: dict[str, Any], task: Any, sample: dict[str, Any]
) -> None:
    model = make_model(task, dropout=0.1).train()
    # In a ball in which every option makes a difference.
    base = {} if "alum_preset" in option else {**LARGE, "alum_norm": "linf"}
    if option == {"alum_projection": "none"}:  # the steps alone stay inside
        base |= {"alum_epsilon": 0.1}
    losses = []
    for options in (base, {**base, **option}):
        criterion = make_criterion(task, **options)
        criterion.prepare_update(2)
        loss, log, _ = step(criterion, model, sample)
        if "alum_divergence" in option or "alum_alpha" in option:
            loss = loss - log["loss"]
        losses.append(loss.item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_are_the_number_of_ascents(
    steps: int, task: Any, sample: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reruns = []
    rerun = EncoderTap.rerun
    monkeypatch.setattr(EncoderTap, "rerun", lambda *a: reruns.append(1) or rerun(*a))
    model = make_model(task).train()
    make_criterion(task, alum_steps=steps, alum_log_gain_interval=0)(model, sample)
    assert len(reruns) == steps + 1


def test_presets_are_overridden_by_what_is_given() -> None:
    criterion = make_criterion(alum_preset="paper", alum_epsilon=0.5, alum_norm="l2")
    assert criterion.schedule.alpha == 10
    assert criterion.preset.dropout == "independent"
    adversary = criterion.method.adversary
    assert (adversary.epsilon, adversary.norm) == (0.5, "l2")
    assert (adversary.noise_std, adversary.step_size, adversary.gradient) == (1e-5, 1e-3, "raw")


def test_the_schedule(task: Any, sample: dict[str, Any]) -> None:
    criterion = make_criterion(
        task, alum_alpha=8.0, alum_start_update=10, alum_warmup_updates=4, **LARGE
    )
    model = make_model(task).train()
    weights = []
    for update in (0, 9, 10, 11, 13, 14, 100):
        criterion.prepare_update(update)
        loss, log, _ = step(criterion, model, sample)
        regularizer = log["_alum_loss"].item()
        weights.append((loss - log["loss"]).item() / regularizer if regularizer else 0)
    assert weights == pytest.approx([0, 0, 0, 2, 6, 8, 8], rel=1e-3)


@pytest.mark.parametrize("option", ["alum_start_update", "alum_warmup_updates"])
def test_a_schedule_needs_a_task_that_passes_the_update(option: str) -> None:
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UsageError, match=rf"{flag} needs .*use --task alum_masked_lm"):
        make_criterion(make_task(), **{option: 5})


@pytest.mark.parametrize("interval", [0, 1, 2, 3])
def test_the_gain_is_measured_every_so_many_updates(
    interval: int, task: Any, sample: dict[str, Any]
) -> None:
    criterion = make_criterion(task, alum_log_gain_interval=interval)
    model = make_model(task).train()
    measured = []
    for update in range(6):
        criterion.prepare_update(update)
        for _ in range(2):  # --update-freq 2
            measured.append(criterion(model, sample)[2]["_alum_gain_measured"].item())
    assert measured[1::2] == [0] * 6
    assert measured[::2] == [float(interval > 0 and u % interval == 0) for u in range(6)]


def test_without_the_task_updates_are_counted_by_batches(sample: dict[str, Any]) -> None:
    criterion = make_criterion(make_task(), alum_log_gain_interval=2)
    model = make_model(make_task()).train()
    measured = [criterion(model, sample)[2]["_alum_gain_measured"].item() for _ in range(4)]
    assert measured == [1, 0, 1, 0]


@pytest.mark.parametrize("dropout", ["shared", "independent"])
def test_measuring_the_gain_leaves_training_to_the_bit(
    dropout: str, task: Any, sample: dict[str, Any]
) -> None:
    model = make_model(task, dropout=0.1).train()
    results = []
    for interval in (0, 1):
        criterion = make_criterion(
            task, alum_log_gain_interval=interval, alum_dropout=dropout, **LARGE
        )
        loss, _, gradients = step(criterion, model, sample)
        results.append((loss, gradients, torch.rand(3)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alum_alpha": -1.0}, "--alum-alpha is -1.0: it must be 0 (off) or more"),
        ({"alum_alpha": math.nan}, "--alum-alpha is nan"),
        ({"alum_steps": -1}, "--alum-steps is -1: it must be a whole number"),
        ({"alum_epsilon": 0.0}, "--alum-epsilon is 0.0: it must be a finite number above 0"),
        ({"alum_step_size": -1.0}, "--alum-step-size is -1.0"),
        ({"alum_noise_std": -1.0}, "--alum-noise-std is -1.0"),
        ({"alum_noise_std": 0.0}, "--alum-noise-std is 0: it must be above 0"),
        ({"alum_start": "zero"}, "--alum-start is zero: it must be normal or uniform when steps"),
        ({"alum_site": "-1"}, "--alum-site is '-1': it must be words, embeddings, or the number"),
        ({"alum_proximal": -1.0}, "--alum-proximal is -1.0: it must be 0 (off) or more"),
        ({"alum_start_update": -1}, "--alum-start-update is -1"),
        ({"alum_warmup_updates": -1}, "--alum-warmup-updates is -1"),
        ({"alum_log_gain_interval": -1}, "--alum-log-gain-interval is -1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str, task: Any) -> None:
    with pytest.raises(UsageError) as error:
        make_criterion(task, **options)
    assert message in str(error.value)


def test_the_settings_are_logged_in_one_line(caplog: pytest.LogCaptureFixture, task: Any) -> None:
    with caplog.at_level(logging.INFO):
        make_criterion(task, alum_epsilon=0.25)
    [message] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("ALUM:")]
    for part in (
        "preset=calibrated",
        "epsilon=0.25",
        "steps=1",
        "dropout=shared",
        "site=embeddings",
    ):
        assert part in message


# Only masked positions are projected to the vocabulary.


def test_only_masked_positions_are_projected_in_every_pass(
    task: Any, sample: dict[str, Any]
) -> None:
    shapes = []
    model = make_model(task).train()
    model.encoder.lm_head.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    make_criterion(task, alum_steps=2)(model, sample)
    # clean, two ascents, adversarial, random (for the gain)
    assert shapes == [(6, len(task.source_dictionary))] * 5


def test_a_batch_without_masked_tokens_counts_for_nothing(task: Any) -> None:
    sample = make_sample(task.source_dictionary, masked=0)
    model = make_model(task).train()
    loss, log, gradients = step(make_criterion(task, **LARGE), model, sample)
    assert loss == 0
    assert log["_alum_loss"] == 0
    assert all(g.abs().max() == 0 for g in gradients)


# Numbers gone wrong.


def _for_training(tap: EncoderTap) -> bool:
    """Whether a pass is run to train the parameters, not to find the perturbation."""
    return next(tap._model.parameters()).requires_grad


@pytest.mark.parametrize("where", ["gradient", "logits"])
def test_a_perturbation_that_is_not_finite_is_dropped(
    where: str, task: Any, sample: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(task, dropout=0.1).train()
    expected = step(MaskedLmLoss(MaskedLmConfig(tpu=False), task), model, sample)
    rerun = EncoderTap.rerun

    def poisoned(tap: EncoderTap, embeddings: Tensor) -> Tensor:
        if where == "gradient" and embeddings.requires_grad and embeddings.grad_fn is not None:
            embeddings.register_hook(lambda g: torch.full_like(g, math.inf))
        logits = rerun(tap, embeddings)
        return logits * math.nan if where == "logits" and _for_training(tap) else logits

    monkeypatch.setattr(EncoderTap, "rerun", poisoned)
    loss, log, gradients = step(make_criterion(task), model, sample)
    assert log["_alum_skipped"] == 1
    assert log["_alum_attempts"] == 1
    assert log["_alum_sample_size"] == 0
    assert torch.equal(loss, expected[0])
    assert all(map(torch.equal, gradients, expected[2]))
    reduced = reduce([log])
    assert reduced["adv_skipped"] == 1
    assert "adv_loss" not in reduced


# Metrics.


def reduce(logs: list[dict[str, Any]]) -> dict[str, float]:
    with metrics.aggregate(new_root=True) as aggregated:
        AlumMlm.reduce_metrics(logs)
    return aggregated.get_smoothed_values()


def test_training_metrics(task: Any, sample: dict[str, Any]) -> None:
    criterion = make_criterion(task, **LARGE)
    model = make_model(task).train()
    logs = [step(criterion, model, sample, seed)[1] for seed in (1, 2)]
    criterion.prepare_update(100)
    logs.append(step(criterion, model, sample, 3)[1])
    reduced = reduce(logs)
    total = sum(log["_alum_loss"].item() for log in logs)
    assert reduced["adv_loss"] == pytest.approx(total / 18 / math.log(2), abs=1e-4)
    assert reduced["adv_skipped"] == 0
    assert reduced["adv_norm"] == pytest.approx(
        sum(log["_alum_norm"].item() for log in logs) / 3, abs=1e-5
    )
    found = sum(log["_alum_gain_adversarial"].item() for log in logs)
    by_chance = sum(log["_alum_gain_random"].item() for log in logs)
    assert [log["_alum_gain_measured"].item() for log in logs] == [1, 0, 1]
    assert reduced["adv_gain"] == pytest.approx(found / by_chance, abs=0.01)
    loss = sum(log["loss"].item() for log in logs) / 18 / math.log(2)
    assert reduced["loss"] == pytest.approx(loss, abs=1e-3)
    assert reduced["ppl"] == pytest.approx(2**loss, abs=0.01)


def test_the_last_known_gain_is_shown_between_measurements(
    task: Any, sample: dict[str, Any]
) -> None:
    criterion = make_criterion(task, **LARGE)
    model = make_model(task).train()
    logs = [criterion(model, sample)[2] for _ in range(2)]
    with metrics.aggregate(new_root=True) as aggregated:
        AlumMlm.reduce_metrics(logs[:1])
        first = aggregated.get_smoothed_values()["adv_gain"]
        aggregated.reset()
        AlumMlm.reduce_metrics(logs[1:])
        assert aggregated.get_smoothed_values()["adv_gain"] == first > 0


def test_every_batch_logs_the_same_keys_as_tensors(task: Any, sample: dict[str, Any]) -> None:
    """What fairseq's fast synchronisation of workers relies on."""
    model = make_model(task).train()
    off = make_criterion(task, alum_alpha=0.0)(model, sample)[2]
    on = make_criterion(task)(model, sample)[2]
    assert off.keys() == on.keys()
    for key in on:
        if key.startswith("_alum"):
            assert on[key].dtype == off[key].dtype == torch.float32
            assert on[key].dim() == 0


@pytest.fixture
def validated(
    task: Any, sample: dict[str, Any], perturbations: list[Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    model = make_model(task, dropout=0.3).eval()
    criterion = make_criterion(task, alum_validate=True, **LARGE).eval()
    with torch.no_grad():
        loss, _, log = criterion(model, sample)
    assert not loss.requires_grad
    return model, log


def test_validation_under_attack(
    validated: tuple[nn.Module, dict[str, Any]],
    task: Any,
    sample: dict[str, Any],
    perturbations: list[Tensor],
) -> None:
    model, log = validated
    stock_log = MaskedLmLoss(MaskedLmConfig(tpu=False), task)(model, sample)[2]
    reduced = reduce([log])
    assert log["loss"] == stock_log["loss"]
    attacked = naive_logits(model, sample, perturbations[0])
    targets = sample["target"][sample["target"].ne(1)]
    expected = nn.functional.cross_entropy(attacked, targets).item() / math.log(2)
    assert reduced["adv_task_loss"] == pytest.approx(expected, abs=1e-3)
    assert abs(reduced["adv_task_loss"] - reduced["loss"]) > 0.01
    assert reduced["adv_ppl"] == pytest.approx(2 ** reduced["adv_task_loss"], rel=1e-2)
    assert reduced["adv_gain"] > 1
    assert reduced["adv_loss"] > 0
    # Every key of fairseq's own metrics has its counterpart.
    with metrics.aggregate(new_root=True) as stock:
        MaskedLmLoss.reduce_metrics([stock_log])
    names = {"adv_task_loss" if key == "loss" else f"adv_{key}" for key in stock}
    assert names <= set(reduced)


def test_validation_is_repeatable_and_draws_no_random_numbers(
    validated: tuple[nn.Module, dict[str, Any]], task: Any, sample: dict[str, Any]
) -> None:
    model, log = validated
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with torch.no_grad():
        again = make_criterion(task, alum_validate=True, **LARGE)(model, sample)[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert {k: float(v) for k, v in again.items()} == {k: float(v) for k, v in log.items()}


def test_without_the_option_validation_is_fairseqs(task: Any, sample: dict[str, Any]) -> None:
    model = make_model(task).eval()
    log = make_criterion(task)(model, sample)[2]
    with metrics.aggregate(new_root=True) as stock:
        MaskedLmLoss.reduce_metrics([log])
    assert reduce([log]) == stock.get_smoothed_values()


# The warning.


def run_updates(criterion: AlumMlm, model: nn.Module, sample: dict[str, Any]) -> None:
    for update in range(60):
        criterion.prepare_update(update)
        criterion(model, sample)


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_a_low_gain_is_warned_of_once(
    preset: str, task: Any, sample: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(task).train()
    criterion = make_criterion(task, alum_preset=preset, alum_log_gain_interval=1)
    run_updates(criterion, model, sample)
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "hardly better than a random one" in warning
    assert "--alum-preset calibrated" in warning


@pytest.mark.parametrize(
    ("preset", "updates", "warned"),
    [("paper", 101, True), ("r3f", 250, True), ("paper", 100, False), ("calibrated", 250, False)],
)
def test_a_short_run_is_judged_at_validation(
    preset: str,
    updates: int,
    warned: bool,
    task: Any,
    sample: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model(task)
    criterion = make_criterion(task, alum_preset=preset)  # measures every 100 updates
    for update in range(0, updates, 50):
        criterion.prepare_update(update)
        criterion(model.train(), sample)
    assert not [r for r in caplog.records if "adv_gain is" in r.getMessage()]
    caplog.clear()
    with torch.no_grad():
        criterion(model.eval(), sample)
        criterion(model, sample)
    assert ["hardly better" in r.getMessage() for r in caplog.records] == [True] * warned


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"alum_steps": 0}, "--alum-steps is 0: set it to 1 or more"),
        ({"alum_gradient": "raw"}, "Use --alum-preset calibrated, or --alum-gradient normalized"),
        ({"alum_dropout": "independent"}, "Use --alum-dropout shared: "),
        ({}, "lower --alum-noise-std against --alum-step-size"),
    ],
)
def test_the_remedy_fits_the_ascent(
    options: dict[str, Any], remedy: str, task: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(make_criterion(task, **options).preset)
    for _ in range(LOW_GAIN_MEASUREMENTS):
        watch.gain(1.0, 1.0)
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert remedy in warning


def test_a_high_gain_is_not_warned_of(
    task: Any, sample: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(task).train()
    run_updates(make_criterion(task, alum_log_gain_interval=1), model, sample)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


# Half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(dtype: torch.dtype, task: Any, sample: dict[str, Any]) -> None:
    model = make_model(task, dropout=0.1)
    wide = copy.deepcopy(model).train()
    narrow = model.to(dtype).train()
    criterion = make_criterion(task, alum_dropout="shared", **LARGE)
    _, expected, _ = step(criterion, wide, sample)
    loss, log, gradients = step(criterion, narrow, sample)
    assert log["_alum_skipped"] == 0
    assert loss.dtype == torch.float32
    assert log["_alum_loss"].item() == pytest.approx(expected["_alum_loss"].item(), rel=0.5)
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_under_autocast(dtype: torch.dtype, task: Any, sample: dict[str, Any]) -> None:
    model = make_model(task, dropout=0.1).train()
    criterion = make_criterion(task, **LARGE)
    _, expected, _ = step(criterion, model, sample)
    with torch.autocast("cpu", dtype):
        _, log, gradients = step(criterion, model, sample)
    assert log["_alum_skipped"] == 0
    assert log["_alum_loss"].item() == pytest.approx(expected["_alum_loss"].item(), rel=0.5)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_model_that_is_no_roberta_is_refused(task: Any, sample: dict[str, Any]) -> None:
    model = nn.Linear(2, 2)
    model.args = Namespace()
    with pytest.raises(UsageError, match="cannot perturb a Linear"):
        make_criterion(task)(model, sample)
