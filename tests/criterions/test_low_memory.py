"""``--alum-memory low``: the same loss and gradients, with one pass's activations at a time."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from fairseq.distributed import ModuleProxyWrapper
from support.one_batch import HEAD, LARGE, TASKS, assert_same, make_case, step
from support.places import ROOT
from torch import nn

from alum_fairseq import Adversary, UsageError

sys.path.insert(0, str(ROOT / "scripts"))
from benchmark import peak_memory

WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "task-loss": {"alum_objective": "task-loss"},
    "random": {"alum_steps": 0},
}


@pytest.mark.parametrize("way", [*WAYS, "vat", "r3f", "smart"])
@pytest.mark.parametrize("kind", TASKS)
def test_low_memory_gives_the_same_loss_and_gradients(kind: str, way: str) -> None:
    model, sample, make = make_case(kind)
    options = {**WAYS.get(way, {"alum_preset": way}), "alum_alpha": 2.0, **LARGE}
    options["alum_epsilon_mode"] = "relative"
    momentum = copy.deepcopy(model)
    for parameter in momentum.parameters():
        parameter.data.mul_(0.9)

    def criterion(**chosen: Any) -> Any:
        made = make(**chosen)
        made.prepare_update(0, 1.0, momentum)
        return made

    expected = step(criterion(**options), model, sample)
    assert_same(step(criterion(alum_memory="low", **options), model, sample), expected)
    assert expected[1]["_alum_loss"] > 1e-3
    scaled = step(criterion(alum_memory="low", **options), model, sample, factor=64.0)
    assert_same([g / 64 for g in scaled[2].values()], list(expected[2].values()))


@pytest.mark.parametrize(
    "options",
    [
        {"alum_divergence": "symmetric_kl"},
        {"alum_divergence": "jensen_shannon"},
        {"alum_site": "words"},
        {"alum_site": "1"},
        {"alum_sides": "adversarial"},
        {"alum_dropout": "shared", "alum_steps": 2},
        {"alum_dropout": "independent"},
        {"alum_objective": "task-loss", "alum_steps": 3},
    ],
    ids=str,
)
def test_low_memory_goes_with_every_option(options: dict[str, Any]) -> None:
    model, sample, criterion = make_case("mlm")
    expected = step(criterion(**LARGE, **options), model, sample)
    assert_same(step(criterion(alum_memory="low", **LARGE, **options), model, sample), expected)


@pytest.mark.parametrize(
    "model_options",
    [
        {"encoder_layerdrop": 0.5, "encoder_layers": 6},
        {"checkpoint_activations": True},
        {"encoder_normalize_before": True},
        {"untie_weights_roberta": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", ["divergence", "task-loss"])
def test_low_memory_goes_with_every_model(model_options: dict[str, Any], objective: str) -> None:
    results = []
    for memory in ("normal", "low"):
        torch.manual_seed(7)
        model, sample, criterion = make_case("mlm", **model_options)
        results.append(step(criterion(alum_memory=memory, alum_objective=objective), model, sample))
    assert results[0][1]["_alum_batches"] == 1
    assert_same(results[1], results[0])


def test_low_memory_refuses_quantisation_noise() -> None:
    model, sample, criterion = make_case("mlm", quant_noise_pq=0.3)
    with pytest.raises(UsageError, match=r"--alum-memory is low.*--quant-noise-pq"):
        criterion(alum_memory="low").check_model(model)
    with pytest.raises(UsageError, match=r"--alum-memory is low.*--quant-noise-pq"):
        step(criterion(alum_memory="low"), model, sample)


def test_checkpointed_activations_refuse_quantisation_noise() -> None:
    case = {"quant_noise_pq": 0.3, "checkpoint_activations": True}
    model, sample, criterion = make_case("mlm", **case)
    for run in (lambda: criterion().check_model(model), lambda: step(criterion(), model, sample)):
        with pytest.raises(UsageError, match=r"--checkpoint-activations .*--quant-noise-pq"):
            run()
    step(criterion(alum_alpha=0.0), model, sample)
    criterion(alum_alpha=0.0).check_model(model)


def test_spectral_normalisation_is_the_clean_pass_s_in_every_pass() -> None:
    model, sample, criterion = make_case("classification", spectral_norm_classification_head=True)
    results = []
    for options in ({}, {"alum_memory": "low"}, {"alum_steps": 3}):
        again = copy.deepcopy(model)
        result = step(criterion(**LARGE, **options), again, sample)
        head = again.classification_heads[HEAD].out_proj
        results.append((*result, head.weight_u))
    assert_same(results[1], results[0])
    assert torch.equal(results[0][3], results[2][3])  # moved by one pass, whatever K
    assert not torch.equal(results[0][3], model.classification_heads[HEAD].out_proj.weight_u)


def test_low_memory_computes_in_the_precision_of_autocast() -> None:
    """The weights that autocast keeps from a pass without a graph would have no gradient."""
    model, sample, criterion = make_case("mlm")
    model.float()
    results = []
    for memory in ("normal", "low"):
        model.zero_grad()
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(alum_memory=memory, **LARGE)(model, sample)[0]
        loss.backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2 * expected.abs().max())


@pytest.fixture
def process_group() -> Iterator[None]:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
@pytest.mark.parametrize("unused", [False, True])
def test_low_memory_inside_torchs_data_parallel_wrapper(unused: bool) -> None:
    """Each parameter's gradient must arrive once: DDP refuses a second one."""
    model, sample, criterion = make_case("mlm")
    expected = step(criterion(**LARGE), model, sample)
    wrapped = ModuleProxyWrapper(
        nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
    )
    for _ in range(2):
        loss, log, gradients = step(criterion(alum_memory="low", **LARGE), wrapped, sample)
        renamed = {name.removeprefix("module.module."): g for name, g in gradients.items()}
        assert_same([loss, log, renamed], expected)


def test_low_memory_drops_a_perturbation_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sample, criterion = make_case("mlm")
    plain = step(criterion(alum_alpha=0.0), model, sample)
    monkeypatch.setattr(Adversary, "perturb", lambda *a, **k: torch.full((4, 9, 16), float("nan")))
    loss, log, gradients = step(criterion(alum_memory="low"), model, sample)
    assert log["_alum_skipped"] == 1
    assert_same([loss, gradients], [plain[0], plain[2]])


@pytest.mark.parametrize("objective", ["divergence", "task-loss"])
@pytest.mark.parametrize(
    ("frozen", "site"),
    [
        (("embed",), "words"),
        (("embed",), "embeddings"),
        (("embed", "layers.0"), "1"),
        (("encoder",), "embeddings"),
    ],
)
def test_low_memory_with_frozen_parameters(
    frozen: tuple[str, ...], site: str, objective: str
) -> None:
    """Of what lies below the perturbation, or of all but the head."""
    model, sample, criterion = make_case("classification")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    options = {"alum_objective": objective, "alum_site": site, **LARGE}
    expected = step(criterion(**options), model, sample)
    assert_same(step(criterion(alum_memory="low", **options), model, sample), expected)
    assert 0 < len(expected[2]) < len(list(model.parameters()))


def test_low_memory_leaves_the_random_numbers_as_a_pass_does() -> None:
    """What is drawn in the backward pass must not repeat, or move, what training draws next."""
    model, sample, criterion = make_case("mlm")
    model.train()
    torch.manual_seed(2)
    loss = criterion(alum_memory="low")(model, sample)[0]
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_low_memory_holds_no_graph_between_the_passes() -> None:
    model, sample, criterion = make_case("mlm")
    model.train()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        criterion(alum_memory="normal", alum_log_gain_interval=0)(model, sample)
        normal = sum(saved)
        saved.clear()
        criterion(alum_memory="low", alum_log_gain_interval=0)(model, sample)
    # The ascent and the adversarial pass, without the clean one.
    assert sum(saved) < 0.75 * normal


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("classification", {"alum_objective": "task-loss", "alum_steps": 2}),
        ("ranking", {"alum_objective": "task-loss"}),
    ],
    ids=str,
)
def test_low_memory_is_low_along_the_task_loss(kind: str, options: dict[str, Any]) -> None:
    """The clean pass has no graph when the ascent makes a pass of its own."""
    model, sample, criterion = make_case(kind, encoder_layers=6)
    parameters_size = sum(p.numel() * p.element_size() for p in model.parameters())
    peaks = []
    for chosen in ({}, {"alum_memory": "low"}, {"alum_memory": "low", **options}):
        update = partial(step, criterion(alum_log_gain_interval=0, **chosen), model, sample)
        update()
        peaks.append(peak_memory(parameters_size, update, cuda=False))
    normal, low, along_loss = peaks
    assert low < 0.8 * normal
    assert along_loss < low + 0.1 * (normal - low)
