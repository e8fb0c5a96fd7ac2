"""The cheaper ways of training: each computes what it says."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from conftest import ROOT, make_model, make_sample, make_task
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.distributed import ModuleProxyWrapper
from torch import Tensor, nn

from alum_fairseq import Adversary, UsageError


from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.criterions.alum_sentence_prediction import (
    AlumSentencePrediction,
    AlumSentencePredictionConfig,
)
from alum_fairseq.criterions.alum_sentence_ranking import (
    AlumSentenceRanking,
    AlumSentenceRankingConfig,
)
from alum_fairseq.criterions.batches import merge_logs, split_rows
from alum_fairseq.encoder.tap import EncoderTap

sys.path.insert(0, str(ROOT / "scripts"))
from benchmark import peak_memory

HEAD = "sentence_classification_head"
LARGE = {"alum_epsilon": 0.3, "alum_noise_std": 0.05, "alum_step_size": 0.2}
TASKS = ("mlm", "classification", "regression", "ranking")
LABELS = ("sampled-label", "true-label")

Case = tuple[nn.Module, dict[str, Any], Callable[..., Any]]


def make_case(kind: str, **model_options: Any) -> Case:
    """A model in float64, a batch with padding, and what makes a criterion of given options."""
    task = make_task(passes_update_number=True)
    task.label_dictionary = task.source_dictionary
    # fairseq's gelu computes in float32, whatever the model is in.
    model = make_model(task, **{"dropout": 0.1, "activation_fn": "tanh", **model_options}).double()
    sample = make_sample(task.source_dictionary, (9, 7, 6, 4), masked=2 if kind == "mlm" else 0)
    if kind == "mlm":
        return model, sample, lambda **o: AlumMlm(AlumMlmConfig(tpu=False, **o), task)
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


# Low memory: the same loss and gradients.


@pytest.mark.parametrize("ascent", ["power", *LABELS, "random"])
@pytest.mark.parametrize("kind", TASKS)
def test_low_memory_gives_the_same_loss_and_gradients(kind: str, ascent: str) -> None:
    model, sample, criterion = make_case(kind)
    options = {"alum_ascent": ascent, "alum_alpha": 2.0, **LARGE}
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
        {"alum_layer": 1},
        {"alum_dropout": "shared", "alum_steps": 2},
        {"alum_steps": 3, "alum_step_layers": 1},
        {"alum_ascent": "sampled-label", "alum_steps": 3, "alum_step_layers": 1},
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
@pytest.mark.parametrize("ascent", ["power", "sampled-label"])
def test_low_memory_goes_with_every_model(model_options: dict[str, Any], ascent: str) -> None:
    results = []
    for memory in ("normal", "low"):
        torch.manual_seed(7)
        model, sample, criterion = make_case("mlm", **model_options)
        results.append(step(criterion(alum_memory=memory, alum_ascent=ascent), model, sample))
    assert results[0][1]["_alum_batches"] == 1
    assert_same(results[1], results[0])


def test_low_memory_refuses_quantisation_noise() -> None:
    model, sample, criterion = make_case("mlm", quant_noise_pq=0.3)
    with pytest.raises(UsageError, match=r"--alum-memory is low.*--quant-noise-pq"):
        step(criterion(alum_memory="low"), model, sample)


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


@pytest.mark.parametrize("ascent", ["power", *LABELS])
@pytest.mark.parametrize(
    ("frozen", "layer"), [(("embed",), 0), (("embed", "layers.0"), 1), (("encoder",), 0)]
)
def test_low_memory_with_frozen_parameters(
    frozen: tuple[str, ...], layer: int, ascent: str
) -> None:
    """Of what lies below the perturbation, or of all but the head."""
    model, sample, criterion = make_case("classification")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    options = {"alum_ascent": ascent, "alum_layer": layer, **LARGE}
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
        ("classification", {"alum_ascent": "sampled-label", "alum_steps": 2}),
        # Of several calls there is no graph to make use of.
        ("ranking", {"alum_ascent": "true-label"}),
    ],
    ids=str,
)
def test_low_memory_is_low_along_a_label(kind: str, options: dict[str, Any]) -> None:
    """The clean pass's graph is gone before the ascent makes a pass of its own."""
    model, sample, criterion = make_case(kind, encoder_layers=6)
    peaks = []
    for chosen in ({}, {"alum_memory": "low"}, {"alum_memory": "low", **options}):
        update = partial(step, criterion(alum_log_gain_interval=0, **chosen), model, sample)
        update()
        peaks.append(peak_memory(model, update))
    normal, low, along_label = peaks
    assert low < 0.8 * normal
    assert along_label < low + 0.1 * (normal - low)


# Deferred gradients.


def test_a_deferred_gradient_is_that_of_its_function() -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    unused = torch.tensor(1.0, requires_grad=True)
    value = deferred((w**2).sum(), lambda g: [2 * w.detach() * g, None], [w, unused])
    (3 * value).backward()
    assert value == 13
    assert w.grad.tolist() == [12.0, 18.0]
    assert unused.grad is None


# Labels: gradients at the unperturbed input.


def linear_case() -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    torch.manual_seed(3)
    a = torch.randn(3 * 4, 5, dtype=torch.float64)
    e = torch.randn(2, 3, 4, dtype=torch.float64)
    return a, e, lambda x: x.flatten(1) @ a


@pytest.mark.parametrize("joined", [False, True])
def test_the_true_label_s_direction_is_that_of_the_task_loss(joined: bool) -> None:
    _, e, predict = linear_case()
    labels = torch.tensor([1, 4])
    leaf = e.clone().requires_grad_()
    (expected,) = torch.autograd.grad(
        nn.functional.cross_entropy(predict(leaf), labels, reduction="sum"), leaf
    )
    adversary = Adversary(
        ascent="true-label", gradient="raw", projection="clip", epsilon=1e9, step_size=1.0
    )
    adversary = Adversary(**{**vars(adversary), "epsilon_mode": "absolute"})
    embeddings = leaf if joined else e
    logits = predict(embeddings)
    delta = adversary.perturb(predict, embeddings, logits, labels=labels)
    torch.testing.assert_close(delta, expected)
    if joined:
        logits.sum().backward()  # the graph was kept


def test_sampled_labels_are_drawn_from_the_prediction() -> None:
    measure = Adversary().measure
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, -30.0]]).repeat(20000, 1)
    labels = measure.sample(logits, torch.Generator().manual_seed(0))
    for row in (0, 1):
        share = torch.bincount(labels[row::2], minlength=3) / 20000
        torch.testing.assert_close(share, logits[row].softmax(-1), atol=0.015, rtol=0)
    numbers = Adversary(divergence="squared_error").measure.sample(torch.full((40000,), 3.0))
    assert numbers.mean() == pytest.approx(3, abs=0.03)
    assert numbers.std() == pytest.approx(1, abs=0.03)


def test_sampled_labels_are_words_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where rounding leaves nothing of the distribution above the number drawn."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, -30.0]])
    assert Adversary().measure.sample(logits).tolist() == [2, 2]


def drawn_directions(ascent: str, draws: int, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Steps along the raw gradient, one a row, and the Fisher matrix of the (linear) model."""
    a, e, linear = linear_case()
    a, e = sharpness * a, e[:1]

    def predict(x: Tensor) -> Tensor:
        return sharpness * linear(x)

    adversary = Adversary(
        ascent=ascent,
        gradient="raw",
        projection="clip",
        epsilon=1e9,
        epsilon_mode="absolute",
        noise_std=1e-4,
        # Of the ascent "power" the gradient is the Fisher matrix times the random start.
        step_size=1.0 if ascent == "sampled-label" else 1e4,
    )
    logits = predict(e)
    drawn = [adversary.perturb(predict, e, logits).flatten() for _ in range(draws)]
    p = logits[0].softmax(-1)
    return torch.stack(drawn), a @ (torch.diag(p) - torch.outer(p, p)) @ a.T


def test_the_sampled_direction_is_a_root_of_the_fisher_matrix() -> None:
    """The mean outer product of its gradients is the Hessian of the divergence, in closed form."""
    drawn, fisher = drawn_directions("sampled-label", 4000)
    found = drawn.T @ drawn / len(drawn)
    assert (found - fisher).norm() < 0.06 * fisher.norm()


def test_the_sampled_direction_finds_less_the_more_directions_matter() -> None:
    """What it finds of the exact ascent's divergence, for steps of equal length, in closed form.

    A direction g causes g'Fg / 2 a unit of length: of mean outer product F (sampled label) it is
    tr F^2 / tr F, of F^2 (power) tr F^3 / tr F^2. Equal where F has one direction, as with two
    classes.
    """
    found = {}
    for ascent in ("sampled-label", "power"):
        drawn, fisher = drawn_directions(ascent, 2000, sharpness=0.3)
        found[ascent] = ((drawn @ fisher) * drawn).sum() / drawn.square().sum()
    traces = [torch.linalg.matrix_power(fisher, n).trace() for n in (1, 2, 3)]
    kept = traces[1] ** 2 / (traces[0] * traces[2])
    assert kept < 0.85  # else the test says nothing
    assert found["sampled-label"] / found["power"] == pytest.approx(float(kept), rel=0.07)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("ascent", LABELS)
def test_labels_come_from_the_clean_graph_without_a_pass_of_their_own(
    kind: str, ascent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sample, criterion = make_case(kind)
    reruns: list[int] = []
    rerun = EncoderTap.rerun
    monkeypatch.setattr(EncoderTap, "rerun", lambda *a: reruns.append(1) or rerun(*a))
    step(criterion(alum_ascent=ascent, alum_log_gain_interval=0), model, sample)
    # Several calls (ranking) are laid side by side, which is a copy: one pass more.
    assert len(reruns) == (2 if kind == "ranking" else 1)


def _task_loss(criterion: nn.Module, model: nn.Module, sample: dict[str, Any]) -> float:
    """That of the criterion that ours extends."""
    return super(AlumCriterion, criterion).forward(model, sample)[0].item()


@pytest.mark.parametrize("kind", TASKS)
def test_true_labels_are_those_of_the_task(kind: str) -> None:
    """Against them the task's loss rises, more than along a random direction, and they matter."""
    model, sample, criterion = make_case(kind, dropout=0.0)
    criterion = criterion(alum_ascent="true-label", alum_alpha=1e-9, **LARGE)
    model.train()
    tap = EncoderTap(model, combine=criterion.combine)
    with tap.recording():
        plain = _task_loss(criterion, model, sample)
    delta = criterion._perturb(tap, sample)
    random = criterion.alum.adversary.random_like(delta, tap.mask)

    def loss(perturbation: Tensor) -> float:
        with tap.replaying(tap.embeddings + perturbation):
            return _task_loss(criterion, model, sample)

    assert loss(delta) > plain
    assert loss(delta) > loss(random)


@pytest.mark.parametrize(
    "options",
    [
        {"alum_ascent": "true-label"},
        {"alum_divergence": "squared_error"},
        {"alum_divergence": "squared_error", "alum_ascent": "sampled-label"},
        {"alum_divergence": "jensen_shannon", "alum_memory": "low"},
    ],
)
def test_where_nothing_is_masked(options: dict[str, Any]) -> None:
    """fairseq then projects all tokens; none of them counts."""
    model, sample, criterion = make_case("mlm")
    sample["target"].fill_(1)
    loss, log, _ = step(criterion(**options), model, sample)
    assert loss == 0
    assert log["_alum_loss"] == 0


def test_the_ascent_true_label_wants_labels() -> None:
    _, e, predict = linear_case()
    with pytest.raises(UsageError, match="'true-label' needs labels"):
        Adversary(ascent="true-label").perturb(predict, e, predict(e))


def test_random_is_a_random_direction_on_the_surface() -> None:
    _, e, predict = linear_case()

    def never(_: Tensor) -> Tensor:
        raise AssertionError("it needs no pass")

    for projection in ("clip", "rescale"):
        adversary = Adversary(
            ascent="random",
            epsilon=0.3,
            norm="linf",
            norm_scope="token",
            projection=projection,
            noise_std=0.0,  # that of the start of an ascent, of which there is none
        )
        delta = adversary.perturb(never, e, predict(e))
        rms = e.square().mean((1, 2), keepdim=True).sqrt()
        torch.testing.assert_close(
            adversary.ball.size(delta), (0.3 * rms).expand(2, 3, 1), rtol=1e-3, atol=0
        )
    assert not torch.equal(delta, adversary.perturb(never, e, predict(e)))


# Later steps through the lower layers only.


@pytest.mark.parametrize("ascent", ["power", "sampled-label"])
def test_later_steps_keep_the_gradient_above_the_cut(ascent: str) -> None:
    """Against the same written out: the first gradient at the cut, through the lower part again."""
    torch.manual_seed(3)
    first, second = torch.randn(4, 6).double(), torch.randn(6, 5).double()
    lower = lambda x: torch.tanh(x @ first)  # noqa: E731
    upper = lambda h: torch.tanh(h).mean(1) @ second  # noqa: E731
    e = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    hidden = lower(e)
    clean = upper(hidden)
    ball = {"epsilon": 0.5, "epsilon_mode": "absolute", "norm": "l2", "norm_scope": "token"}
    adversary = Adversary(ascent=ascent, steps=3, step_size=0.4, **ball)
    torch.manual_seed(0)
    delta = adversary.perturb(Split(lower, upper), e, clean, hidden=hidden)

    torch.manual_seed(0)
    adjoint = None
    expected = torch.zeros_like(e)
    if ascent == "power":
        rms = e.detach().square().mean((1, 2), keepdim=True).sqrt()
        expected = 0.01 * rms * torch.randn_like(e)
    for _ in range(3):
        x = (e.detach() + expected).requires_grad_()
        h = lower(x)
        if adjoint is None and ascent == "power":
            p, q = upper(h).log_softmax(-1), clean.detach().log_softmax(-1)
            total = (p.exp() * (p - q)).sum()
            gradient, adjoint = torch.autograd.grad(total, [x, h])
        elif adjoint is None:
            labels = adversary.measure.sample(clean)
            likelihood = upper(h).log_softmax(-1).gather(1, labels[:, None]).sum()
            gradient, adjoint = torch.autograd.grad(likelihood, [x, h])
        else:
            (gradient,) = torch.autograd.grad(h, x, adjoint)
        unit = gradient / gradient.norm(dim=-1, keepdim=True)
        expected = expected + 0.4 * unit
        expected = 0.5 * expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(delta, expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["mlm", "ranking"])
@pytest.mark.parametrize("cut", [1, 2])
def test_the_model_s_two_parts_are_the_model(kind: str, cut: int) -> None:
    model, sample, criterion = make_case(kind, encoder_layers=3, dropout=0.2)
    model.train()
    tap = EncoderTap(model, combine=criterion().combine, step_layers=cut)
    with tap.recording():
        criterion(alum_alpha=0.0)(model, sample)
    parts = tap.network
    assert isinstance(parts, Split)
    hidden = parts.lower(tap.embeddings)
    torch.testing.assert_close(hidden[tap.mask], tap.hidden[tap.mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.upper(hidden), tap.logits, rtol=0, atol=1e-12)


def test_later_steps_run_only_the_lower_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample, criterion = make_case("mlm", encoder_layers=4)
    passes = [0] * 4
    for number, layer in enumerate(model.encoder.sentence_encoder.layers):
        layer.register_forward_hook(
            lambda *_, number=number: passes.__setitem__(number, passes[number] + 1)
        )
    heads: list[int] = []
    model.encoder.lm_head.register_forward_hook(lambda *_: heads.append(1))
    options = {"alum_steps": 4, "alum_log_gain_interval": 0}
    step(criterion(alum_step_layers=2, **options), model, sample)
    # clean, first step, adversarial; and three steps more at the bottom
    assert passes == [6, 6, 3, 3]
    assert len(heads) == 3


# A part of each batch.


@pytest.mark.parametrize("kind", TASKS)
def test_a_part_of_the_batch_is_the_regulariser_of_that_part(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sample, criterion = make_case(kind, dropout=0.0)
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor([2, 0, 3, 1]))
    options = {"alum_ascent": "true-label", **LARGE}  # nothing random
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


def test_logs_of_parts_add_up() -> None:
    assert merge_logs([{"a": 1, "b": torch.tensor(2.0)}, {"a": 3, "c": 1}]) == {
        "a": 4,
        "b": 2,
        "c": 1,
    }


# Every n-th update.


def test_an_interval_leaves_updates_between_to_the_bit() -> None:
    model, sample, criterion = make_case("mlm")
    criterion = criterion(alum_interval=3, alum_alpha=2.0, alum_start_update=4, **LARGE)
    task = make_task()
    stock = MaskedLmLoss(MaskedLmConfig(tpu=False), task)
    expected = step(stock, model, sample)
    weights = []
    for update in range(12):
        criterion.set_num_updates(update)
        loss, log, gradients = step(criterion, model, sample)
        if log["_alum_batches"]:
            weights.append((update, float((loss - log["loss"]) / log["_alum_loss"])))
        else:
            assert torch.equal(loss, expected[0])
            assert all(torch.equal(gradients[n], g) for n, g in expected[2].items())
    assert [update for update, _ in weights] == [4, 7, 10]
    assert [weight for _, weight in weights] == pytest.approx([6.0] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("interval", "log_interval", "expected"),
    [(1, 2, [0, 2, 4, 6, 8]), (3, 3, [0, 3, 6, 9]), (3, 6, [0, 6]), (4, 1, [0, 4, 8])],
)
def test_the_gain_is_measured_where_there_is_an_adversary(
    interval: int, log_interval: int, expected: list[int]
) -> None:
    model, sample, criterion = make_case("mlm")
    criterion = criterion(alum_interval=interval, alum_log_gain_interval=log_interval)
    measured = []
    for update in range(10):
        criterion.set_num_updates(update)
        if step(criterion, model, sample)[1]["_alum_gain_measured"]:
            measured.append(update)
    assert measured == expected


def test_a_gain_that_is_due_is_measured_in_the_next_batch_that_is_attacked() -> None:
    model, sample, criterion = make_case("mlm")
    criterion = criterion(alum_fraction=0.2, alum_log_gain_interval=4)
    sample, _ = split_rows(sample, torch.tensor([0]))
    model.train()
    attacked, measured = [], []
    torch.manual_seed(3)
    for update in range(60):
        criterion.set_num_updates(update)
        log = criterion(model, sample)[2]
        attacked += [update] * int(log["_alum_batches"])
        measured += [update] * int(log["_alum_gain_measured"])
    # Of the attacked ones, the first after each due update.
    expected = {min([u for u in attacked if u >= due], default=None) for due in range(0, 60, 4)}
    assert measured == sorted(expected - {None})
    assert any(update % 4 for update in measured)


# Half precision in the ascent.


def test_the_ascent_alone_is_computed_in_the_precision_asked_for() -> None:
    model, sample, criterion = make_case("mlm", dropout=0.0)
    model.float()
    seen: list[tuple[bool, torch.dtype]] = []
    model.encoder.sentence_encoder.layers[0].fc1.register_forward_hook(
        lambda m, i, o: seen.append((m.weight.requires_grad, o.dtype))
    )
    for precision, dtype in (("same", torch.float32), ("bf16", torch.bfloat16)):
        seen.clear()
        step(criterion(alum_ascent_precision=precision, alum_log_gain_interval=0), model, sample)
        assert seen == [(True, torch.float32), (False, dtype), (True, torch.float32)]


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_ascent_s_precision_goes_with_a_half_model_of_its_own_type(
    own: torch.dtype, precision: str
) -> None:
    model, sample, criterion = make_case("mlm")
    criterion = criterion(alum_ascent_precision=precision)
    model.to(own)
    if (own == torch.float16) == (precision == "fp16"):
        assert step(criterion, model, sample)[1]["_alum_batches"] == 1
        return
    with pytest.raises(UsageError, match=f"--alum-ascent-precision is {precision}, but the model"):
        step(criterion, model, sample)


# Where the random start would be rounded away.


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, 0.01), (torch.float16, 0.01), (torch.bfloat16, 4 / 128)],
)
def test_the_start_is_above_the_rounding_of_the_type(dtype: torch.dtype, expected: float) -> None:
    e = torch.randn(2, 3, 64).to(dtype)
    adversary = Adversary()
    assert adversary.start_std(e) == pytest.approx(expected)
    assert adversary.survives_rounding(e)
    moved = e + (expected * torch.randn(e.shape)).to(dtype)
    assert (moved != e).float().mean() > 0.9
    assert not Adversary(noise_std=1e-5).survives_rounding(e.bfloat16())
    assert Adversary(noise_std=1e-5).survives_rounding(e.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert adversary.start_std(e.float()) == pytest.approx(4 / 128)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"alum_noise_std": 1e-5}, True),
        ({"alum_preset": "paper"}, True),
        ({}, False),
        ({"alum_noise_std": 1e-5, "alum_ascent": "sampled-label"}, False),
        ({"alum_noise_std": 1e-5, "alum_ascent": "random"}, False),
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


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alum_fraction": 0.0}, "--alum-fraction is 0.0: it must be above 0 and at most 1"),
        ({"alum_fraction": 1.5}, "--alum-fraction is 1.5"),
        ({"alum_interval": 0}, "--alum-interval is 0: it must be 1 (every) or more"),
        ({"alum_step_layers": -1}, "--alum-step-layers is -1: it must be 0 or more"),
        ({"alum_step_layers": 1}, "--alum-step-layers is 1, but --alum-steps is 1"),
        ({"alum_ascent": "random", "alum_steps": 2}, "--alum-steps is 2, but --alum-ascent is"),
        (
            {"alum_ascent": "true-label", "alum_divergence": "squared_error"},
            "--alum-ascent is true-label, but --alum-divergence is squared_error",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_case("mlm")[2](**options)
    assert message in str(error.value)


def test_an_interval_needs_a_task_that_passes_the_update() -> None:
    with pytest.raises(UsageError, match="--alum-interval needs the number of the update"):
        AlumMlm(AlumMlmConfig(tpu=False, alum_interval=2), make_task())


@pytest.mark.parametrize(("layer", "step_layers"), [(0, 2), (1, 1)])
def test_a_layer_must_be_left_above_the_cut(layer: int, step_layers: int) -> None:
    model, sample, criterion = make_case("mlm")
    criterion = criterion(alum_layer=layer, alum_step_layers=step_layers, alum_steps=2)
    with pytest.raises(UsageError, match=rf"--alum-step-layers is {step_layers}: it must be from"):
        step(criterion, model, sample)


def test_stock_classification_without_the_adversary() -> None:
    """The criterion that a part of the batch and every n-th update fall back to."""
    model, sample, criterion = make_case("classification")
    task = make_task(passes_update_number=True)
    task.label_dictionary = task.source_dictionary
    stock = SentencePredictionCriterion(
        SentencePredictionConfig(classification_head_name=HEAD, regression_target=False), task
    )
    expected = step(stock, model, sample)
    got = step(criterion(alum_alpha=0.0), model, sample)
    assert torch.equal(got[0], expected[0])
