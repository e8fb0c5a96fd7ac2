"""The bridge: what a re-run computes, and that nothing is left behind."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from support.small_models import make_model, make_sample, make_task
from torch import Tensor, nn

from alum_fairseq import Adversary, UsageError
from alum_fairseq.adversarial.divergences import get_divergence
from alum_fairseq.adversarial.objectives import DivergenceFromClean
from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.encoder.modes import non_reentrant, unwrap
from alum_fairseq.encoder.tap import EncoderTap

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1},
    "prenorm": {"encoder_normalize_before": True, "layernorm_embedding": False},
    "layerdrop": {"encoder_layers": 6, "encoder_layerdrop": 0.5, "dropout": 0.1},
    "checkpointing": {"checkpoint_activations": True, "dropout": 0.1},
    "quant noise": {"quant_noise_pq": 0.2, "quant_noise_pq_block_size": 8},
    "untied": {"untie_weights_roberta": True},
}
SITES = ("words", "embeddings", "1")


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


def call(model: nn.Module, sample: dict[str, Any], pad: int) -> Tensor:
    return model(**sample["net_input"], masked_tokens=sample["target"].ne(pad))[0]


def recorded(model: nn.Module, sample: dict[str, Any], **options: Any) -> tuple[EncoderTap, Tensor]:
    tap = EncoderTap(model, **options)
    with tap.recording():
        logits = call(model, sample, 1)
    return tap, logits


@pytest.mark.parametrize("site", SITES)
def test_rerun_from_the_same_embeddings_gives_the_same_logits(
    variant: dict[str, Any], site: str
) -> None:
    """In training mode: with the dropout masks and the layers of the recorded pass."""
    task = make_task()
    model = make_model(task, **variant).train()
    sample = make_sample(task.source_dictionary)
    tap, logits = recorded(model, sample, site=site)
    assert torch.equal(tap.logits, logits)
    assert torch.equal(tap.rerun(tap.embeddings), logits)
    # At the second time, too, and whatever was drawn in between.
    torch.rand(10)
    assert torch.equal(tap.rerun(tap.embeddings), logits)


@pytest.mark.parametrize("site", SITES)
def test_recording_changes_nothing(variant: dict[str, Any], site: str) -> None:
    task = make_task()
    model = make_model(task, **variant).train()
    sample = make_sample(task.source_dictionary)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = call(model, sample, 1)
    after = torch.rand(3)
    model.load_state_dict(state)  # quantisation noise has changed the weights
    torch.manual_seed(5)
    _, logits = recorded(model, sample, site=site)
    assert torch.equal(logits, expected)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("site", SITES)
def test_a_perturbation_changes_the_logits_and_has_a_gradient(
    variant: dict[str, Any], site: str
) -> None:
    """R3F's mistake in fairseq: a perturbation that the encoder drops without a word."""
    task = make_task()
    model = make_model(task, **variant).train()
    tap, logits = recorded(model, make_sample(task.source_dictionary), site=site)
    delta = torch.full_like(tap.embeddings, 0.1, requires_grad=True)
    delta.data[..., ::2] = -0.1
    with tap.ascending():
        changed = tap.rerun(tap.embeddings.detach() + delta)
        (gradient,) = torch.autograd.grad(changed.square().sum(), delta)
    assert (changed - logits).abs().max() > 1e-3
    assert gradient.abs().max() > 0


def test_the_embeddings_are_what_enters_the_site() -> None:
    task = make_task()
    model = make_model(task).eval()
    sample = make_sample(task.source_dictionary)
    encoder = model.encoder.sentence_encoder
    tokens = sample["net_input"]["src_tokens"]
    padding = tokens.eq(task.source_dictionary.pad())

    tap, _ = recorded(model, sample, site="words")
    assert torch.equal(tap.embeddings, encoder.embed_tokens(tokens))
    assert torch.equal(tap.mask, ~padding)

    tap, _ = recorded(model, sample, site="embeddings")
    embedded = encoder.forward_embedding(tokens)[0] * ~padding.unsqueeze(-1)
    assert torch.equal(tap.embeddings, embedded)
    assert torch.equal(tap.mask, ~padding)

    tap, _ = recorded(model, sample, site="0")
    assert torch.equal(tap.embeddings, embedded)

    tap, _ = recorded(model, sample, site="1")
    first = encoder.layers[0](embedded.transpose(0, 1), encoder_padding_mask=padding)
    assert torch.equal(tap.embeddings, first.transpose(0, 1))


@pytest.mark.parametrize("site", SITES)
def test_a_sentence_of_padding_alone_is_predicted_as_in_the_clean_pass(site: str) -> None:
    task = make_task()
    model = make_model(task, dropout=0.3).train()
    tokens = make_sample(task.source_dictionary)["net_input"]["src_tokens"]
    tokens[1] = task.source_dictionary.pad()
    tap = EncoderTap(model, site=site)
    with tap.recording():
        logits = model(tokens)[0]
    assert logits.isfinite().all()
    assert torch.equal(tap.rerun(tap.embeddings), logits)


def test_independent_dropout_draws_anew() -> None:
    task = make_task()
    model = make_model(task, dropout=0.3).train()
    tap, logits = recorded(model, make_sample(task.source_dictionary), dropout="independent")
    first, second = tap.rerun(tap.embeddings), tap.rerun(tap.embeddings)
    assert not torch.equal(first, logits)
    assert not torch.equal(first, second)


def test_shared_dropout_leaves_the_random_numbers_where_they_were() -> None:
    task = make_task()
    model = make_model(task, dropout=0.3).train()
    tap, _ = recorded(model, make_sample(task.source_dictionary))
    state = torch.get_rng_state()
    tap.rerun(tap.embeddings)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_in_another_precision_has_the_masks_of_the_recorded_one() -> None:
    task = make_task()
    model = make_model(task, dropout=0.5, attention_dropout=0.5).train()
    tap, logits = recorded(model, make_sample(task.source_dictionary))
    with torch.autocast("cpu", torch.bfloat16):
        again = tap.rerun(tap.embeddings)
    assert (again.float() - logits).abs().max() < 0.05 * logits.abs().max()


def test_layerdrop_keeps_the_sub_network_even_with_independent_dropout() -> None:
    task = make_task()
    model = make_model(task, encoder_layers=8, encoder_layerdrop=0.5).train()
    sample = make_sample(task.source_dictionary)
    seen = set()
    for _ in range(5):
        tap, logits = recorded(model, sample, dropout="independent")
        assert torch.equal(tap.rerun(tap.embeddings), logits)
        seen.add(tuple(id(layer) for layer in tap._calls[0].layers))
    assert len(seen) > 1


def test_nothing_is_recorded_where_layerdrop_leaves_out_every_layer() -> None:
    task = make_task()
    model = make_model(task, encoder_layers=1, encoder_layerdrop=0.99999).train()
    tap, _ = recorded(model, make_sample(task.source_dictionary))
    assert not tap.recorded


def test_the_model_is_left_as_it_was(variant: dict[str, Any]) -> None:
    task = make_task()
    model = make_model(task, **variant).train()
    model.encoder.lm_head.bias.requires_grad_(False)
    encoder = model.encoder.sentence_encoder
    attributes, layers = set(vars(encoder)), encoder.layers
    needs_gradient = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    training = [m.training for m in model.modules()]
    tap, _ = recorded(model, make_sample(task.source_dictionary))
    with pytest.raises(ZeroDivisionError), tap.ascending(), tap.replaying(tap.embeddings):
        assert not any(p.requires_grad for p in model.parameters())
        raise ZeroDivisionError
    assert set(vars(encoder)) == attributes
    assert encoder.layers is layers
    assert [p.requires_grad for p in model.parameters()] == needs_gradient
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks
    assert [m.training for m in model.modules()] == training


def gradients(model: nn.Module, sample: dict[str, Any]) -> list[Tensor]:
    """Of a loss that has a clean and an adversarial branch."""
    model.zero_grad()
    torch.manual_seed(3)
    tap, logits = recorded(model, sample)
    with tap.ascending():
        climbed = DivergenceFromClean(tap.rerun, logits, get_divergence("kl"))
        delta = Adversary(steps=2).perturb(climbed, tap.embeddings, tap.mask)
    (tap.rerun(tap.embeddings + delta) * logits).sum().backward()
    return [p.grad.clone() for p in unwrap(model).parameters() if p.grad is not None]


def test_activation_checkpointing_changes_no_gradient() -> None:
    task = make_task()
    sample = make_sample(task.source_dictionary)
    plain = make_model(task, dropout=0.1).train()
    checkpointed = make_model(task, dropout=0.1, checkpoint_activations=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    expected, got = gradients(plain, sample), gradients(checkpointed, sample)
    assert len(expected) > 20
    torch.testing.assert_close(got, expected)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[Any]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("unused", [False, True])
def test_every_wrapper_gives_the_gradients_of_the_plain_model(
    process_group: Any, unused: bool
) -> None:
    task = make_task()
    sample = make_sample(task.source_dictionary)
    model = make_model(task, dropout=0.1).train()
    expected = gradients(model, sample)

    legacy = LegacyDistributedDataParallel(model, process_group)
    torch.testing.assert_close(gradients(legacy, sample), expected)

    proxied = ModuleProxyWrapper(LegacyDistributedDataParallel(model, process_group))
    torch.testing.assert_close(gradients(proxied, sample), expected)

    torch_ddp = nn.parallel.DistributedDataParallel(
        model, process_group=process_group, find_unused_parameters=unused
    )
    for _ in range(2):  # the second update is where DDP complains of an unfinished first
        torch.testing.assert_close(gradients(torch_ddp, sample), expected)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("graph", ["above", "none"])
def test_a_graph_that_is_cut_at_the_site_goes_on_from_leaves(
    graph: str, site: str, variant: dict[str, Any]
) -> None:
    """What lies above and below the cut makes the gradients of the whole."""
    task = make_task()
    model = make_model(task, **variant).train()
    whole, sample = copy.deepcopy(model), make_sample(task.source_dictionary)
    torch.manual_seed(3)
    tap, logits = recorded(whole, sample, site=site)
    assert tap.below == ()
    logits.square().sum().backward()

    tap = EncoderTap(model, site)
    torch.manual_seed(3)
    with non_reentrant(model), tap.recording(graph):
        again = call(model, sample, 1)
    assert again.requires_grad is (graph == "above")
    [entry], [below] = tap.entries, tap.below
    assert entry.is_leaf
    assert below.requires_grad
    assert torch.equal(entry, below)
    if graph == "none":
        with non_reentrant(model):
            again = tap.rerun(entry)
    assert torch.equal(again, logits)
    (gradient,) = torch.autograd.grad(again.square().sum(), entry)
    if site != "words":  # of which the head may be made as well
        positions = model.encoder.sentence_encoder.embed_positions.weight
        (found,) = torch.autograd.grad(below, positions, gradient)
        expected = whole.encoder.sentence_encoder.embed_positions.weight.grad
        torch.testing.assert_close(found, expected)


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="cannot perturb a Linear: it needs a RoBERTa"):
        EncoderTap(nn.Linear(2, 2))


@pytest.mark.parametrize("site", ["2", "9"])
def test_a_layer_that_is_not_there_is_refused(site: str) -> None:
    task = make_task()
    criterion = AlumMlm(AlumMlmConfig(tpu=False, alum_site=site), task)
    with pytest.raises(UsageError, match=f"--alum-site is {site}: it must be words, embeddings, "):
        criterion.check_model(make_model(task))
    with pytest.raises(UsageError, match=f"--alum-site is {site}"):
        criterion(make_model(task), make_sample(task.source_dictionary))


def test_a_criterion_that_calls_the_model_twice_is_refused() -> None:
    task = make_task()
    model = make_model(task)
    sample = make_sample(task.source_dictionary)
    tap = EncoderTap(model)
    with pytest.raises(UsageError, match="called the model 2 times"), tap.recording():
        call(model, sample, 1)
        call(model, sample, 1)


@pytest.mark.parametrize("site", SITES)
def test_a_part_of_the_batch_is_predicted_as_the_whole(site: str) -> None:
    task = make_task()
    model = make_model(task).eval()
    sample = make_sample(task.source_dictionary)
    tap, logits = recorded(model, sample, site=site)
    predicted = logits.split([2] * 3)  # of every row, the two tokens that were masked
    for numbers in ([1], [2, 0], [1, 1, 2, 0]):
        rows = torch.tensor(numbers)
        part = tap.of_rows(rows)
        assert torch.equal(part.embeddings, tap.embeddings[rows])
        assert torch.equal(part.mask, tap.mask[rows])
        expected = torch.cat([predicted[row] for row in numbers])
        torch.testing.assert_close(part.rerun(part.embeddings), expected)
    assert not torch.allclose(predicted[0], predicted[1], atol=1e-3)
    # The tap itself still is one of the whole batch.
    assert torch.equal(tap.logits, logits)
    torch.testing.assert_close(tap.rerun(tap.embeddings), logits)


def test_a_part_of_a_pass_that_called_the_model_twice() -> None:
    task = make_task()
    model = make_model(task).eval()
    first, second = (make_sample(task.source_dictionary, lengths) for lengths in ((9, 6), (4, 5)))
    tap = EncoderTap(model, logits=lambda outputs: torch.cat(list(outputs)))
    with tap.recording():
        call(model, first, 1), call(model, second, 1)
    part = tap.of_rows(torch.tensor([1]))
    assert part.embeddings.shape[:2] == (1, 9 + 5)
    whole = tap.logits.view(2, 2, 2, -1)  # calls x rows x masked tokens x symbols
    torch.testing.assert_close(part.rerun(part.embeddings).view(2, 2, -1), whole[:, 1])
