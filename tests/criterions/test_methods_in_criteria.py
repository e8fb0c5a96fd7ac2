"""Every method in every criterion, against the formulas of its paper over fairseq's own criterion.

The references know nothing of the engine: see ``support/naive_methods.py``, ``method_cases.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from support.method_cases import (
    KINDS,
    SEED,
    SITES,
    Found,
    accumulated,
    engine,
    make_case,
    naive,
    naive_in_part,
    naive_with_momentum,
    prepared,
    stock,
)
from support.token_cases import TOKENS
from torch import Tensor, nn

from alum_fairseq.adversarial.methods import METHODS
from alum_fairseq.adversarial.presets import PRESETS


def model_of(preset: str) -> dict[str, Any]:
    """Dropout, where all passes have the same masks."""
    shared = PRESETS[preset].dropout == "shared"
    return {"dropout": 0.1, "attention_dropout": 0.1} if shared else {}


def difference(got: Found, expected: Found) -> float:
    """The largest, over the loss and all gradients, in multiples of the largest number."""
    assert got.keys() == expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    return max(float((got[key] - value).abs().max()) for key, value in expected.items()) / size


# fairseq takes the task's loss in float32, whatever the model is in.
SAME = 5e-7
# What the options must do to the numbers, for the comparison to see that they are gone.
OTHER = 30 * SAME


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_method_is_its_paper_s_formula_over_fairseq_s_criterion(
    preset: str, kind: str, site: str
) -> None:
    case = make_case(kind, **model_of(preset))
    expected = naive(case, preset, site)
    assert difference(engine(case, preset, alum_site=site), expected) < SAME
    assert difference(stock(case), expected) > OTHER
    if site != PRESETS[preset].site:
        assert difference(engine(case, preset), expected) > OTHER


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_without_the_adversary_the_criterion_is_fairseq_s_to_the_bit(
    preset: str, kind: str
) -> None:
    """Its random numbers, too."""
    case = make_case(kind, dropout=0.1, attention_dropout=0.1)
    expected, after = stock(case), torch.get_rng_state()
    got = engine(case, preset, alum_alpha=0.0)
    assert torch.equal(torch.get_rng_state(), after)
    assert got.keys() == expected.keys()
    if kind in TOKENS:  # which fairseq has no criterion for: the reference adds row by row
        assert difference(got, expected) < SAME
    else:
        assert all(torch.equal(value, expected[key]) for key, value in got.items())


# With what else fairseq has. Each preset in one kind of batch, each kind in several presets.

COMBINED = [
    (preset, kind, SITES[number % 3])
    for number, (preset, kind) in enumerate(zip(PRESETS, itertools.cycle(KINDS), strict=False))
]
combined = pytest.mark.parametrize(("preset", "kind", "site"), COMBINED)


@combined
def test_with_layerdrop_all_passes_have_the_layers_of_the_clean_one(
    preset: str, kind: str, site: str
) -> None:
    case = make_case(kind, encoder_layers=6, encoder_layerdrop=0.4, **model_of(preset))
    expected = naive(case, preset, site)
    assert difference(engine(case, preset, alum_site=site), expected) < SAME
    assert difference(stock(case), expected) > OTHER
    trained = {n.split(".")[3] for n in expected if n.startswith("encoder.sentence_encoder.layers")}
    assert 1 < len(trained) < 6


@combined
def test_with_checkpointed_activations(preset: str, kind: str, site: str) -> None:
    case = make_case(kind, **model_of(preset))
    expected = naive(case, preset, site)
    checkpointed = case.twin(checkpoint_activations=True, **model_of(preset))
    calls = {}
    for each in (case, checkpointed):
        count: list[int] = []
        layer = each.model.encoder.sentence_encoder.layers[1]
        layer.fc1.register_forward_hook(lambda *_, count=count: count.append(1))
        assert difference(engine(each, preset, alum_site=site), expected) < SAME
        calls[each is checkpointed] = len(count)
    assert calls[True] > calls[False]  # it is computed again


@combined
def test_with_a_part_of_the_batch(preset: str, kind: str, site: str) -> None:
    case = make_case(kind, **model_of(preset))
    expected = naive_in_part(case, preset, site, 0.5)
    options = {"alum_site": site, "alum_fraction": 0.5}
    assert difference(engine(case, preset, **options), expected) < SAME
    assert difference(engine(case, preset, alum_site=site), expected) > OTHER
    assert difference(stock(case), expected) > OTHER


@pytest.mark.parametrize(
    ("preset", "kind", "site"),
    [case for case in COMBINED if not METHODS[PRESETS[case[0]].method].accumulates],
)
def test_with_low_memory(preset: str, kind: str, site: str) -> None:
    case = make_case(kind, **model_of(preset))
    expected = naive(case, preset, site)
    passes: list[int] = []
    case.model.register_forward_hook(lambda *_: passes.append(1))
    engine(case, preset, alum_site=site)
    normal = len(passes)
    low = engine(case, preset, alum_site=site, alum_memory="low")
    assert difference(low, expected) < SAME
    assert len(passes) - normal > normal  # the clean pass is made again


# Perturbations of 1e-5 are lost in the rounding of bfloat16.
LARGE = [preset for preset in PRESETS if preset not in ("paper", "r3f", "smart")]
# For each a problem in which what it adds is larger than the rounding, at either site.
SEEN = ("span", "tags", "mlm", "ranking", "classification", "regression", "classification")


@pytest.mark.parametrize("site", ["words", "1"])
@pytest.mark.parametrize(("preset", "kind"), zip(LARGE, SEEN, strict=True))
def test_under_autocast_every_pass_is_in_its_precision(preset: str, kind: str, site: str) -> None:
    """The same roundings in both, but for the order in which weights' gradients are added up."""
    case = make_case(kind, **model_of(preset))
    case.model.float()
    types: list[torch.dtype] = []
    layer = case.model.encoder.sentence_encoder.layers[1]
    layer.fc1.register_forward_hook(lambda _m, _a, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        # 4 roundings, each 2 ** -7 of a number: what the default start is at the least.
        expected = naive(case, preset, site, least_noise=4 * 2**-7)
        plain = stock(case)
        got = engine(case, preset, alum_site=site)
    assert set(types) == {torch.bfloat16}
    assert difference(got, expected) < 1e-2
    assert difference(plain, expected) > 2e-2


@pytest.mark.parametrize("preset", ["calibrated", "pgd", "freelb", "smart"])
def test_two_batches_of_one_update_add_up(preset: str) -> None:
    """``--update-freq 2``: one criterion, two calls, no ``zero_grad`` in between."""
    cases = [make_case("classification", lengths) for lengths in ((9, 7, 6, 4), (5, 8, 3, 3))]
    cases[1].model = cases[0].model
    parts = [naive(case, preset, "words") for case in cases]
    expected = {key: parts[0][key] + parts[1][key] for key in parts[0]}
    model, criterion = cases[0].model, prepared(cases[0], preset, alum_site="words")
    model.zero_grad()
    losses = []
    for case in cases:
        torch.manual_seed(SEED)
        loss = criterion(model, case.sample)[0]
        loss.backward()
        losses.append(loss.detach())
    assert difference({"loss": sum(losses), **accumulated(model)}, expected) < SAME


# SMART's momentum term.


@pytest.mark.parametrize("kind", KINDS)
def test_smart_keeps_near_its_momentum_model(kind: str) -> None:
    """That model's dropout is off, and it has no gradient."""
    case = make_case(kind)
    expected = naive_with_momentum(case, 0.5)
    got = engine(case, "smart", alum_proximal=1.0, alum_alpha=0.5)
    assert difference(got, expected) < SAME
    assert difference(engine(case, "smart", alum_alpha=0.5), expected) > OTHER
    assert all(parameter.grad is None for parameter in case.momentum.parameters())
    dropping = case.twin(dropout=0.5)
    seen: list[bool] = []
    dropping.momentum = dropping.momentum.train()
    dropping.momentum.register_forward_hook(lambda m, *_: seen.append(m.training))
    engine(dropping, "smart", alum_proximal=1.0)
    assert set(seen) == {False}


# Penalties that fairseq's criterion adds once a batch.


@pytest.mark.parametrize("preset", ["calibrated", "fgm", "pgd", "freelb", "smart"])
def test_a_penalty_of_the_weights_is_added_once(preset: str) -> None:
    case = make_case("classification")
    without = engine(case, preset)
    plain = stock(case)
    case.model.args.ffn_reg_scale_factor = 1.0
    added = {key: value - plain[key] for key, value in stock(case).items()}
    got = engine(case, preset)
    assert difference(got, {key: value + added[key] for key, value in without.items()}) < SAME
    assert difference(got, without) > OTHER


# Inside the wrappers of data parallel training.


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def note_reduction(reduced: list[int], bucket: Any) -> torch.futures.Future[Tensor]:
    """In the place of DDP's sum over the workers, of which there is one."""
    reduced.append(bucket.buffer().numel())
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
@pytest.mark.parametrize("kind", ["mlm", "ranking"])
@pytest.mark.parametrize("preset", ["fgm", "freelb", "smart"])
def test_in_every_wrapper_the_gradients_are_the_plain_model_s(
    preset: str, kind: str, process_group: Any
) -> None:
    case = make_case(kind, **model_of(preset))
    expected = naive(case, preset, "words")
    wrap = partial(nn.parallel.DistributedDataParallel, process_group=process_group)
    wrappers = [
        partial(LegacyDistributedDataParallel, process_group=process_group),
        partial(wrap, find_unused_parameters=True),
    ]
    if kind == "mlm":  # elsewhere its head is not used
        wrappers.append(partial(wrap, find_unused_parameters=False))
    numbers = sum(parameter.numel() for parameter in case.model.parameters())
    for wrapper in wrappers:
        inner, reduced = wrapper(case.model), []
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            # DDP takes no hook whose annotations are text.
            inner.register_comm_hook(reduced, lambda state, bucket: note_reduction(state, bucket))
        wrapped = ModuleProxyWrapper(inner)
        for _ in range(2):  # the second update is where DDP complains of an unfinished first
            reduced.clear()
            got = engine(case, preset, wrapped, alum_site="words")
            assert difference(got, expected) < SAME
            if isinstance(inner, nn.parallel.DistributedDataParallel):
                assert sum(reduced) == numbers  # each went to the other workers, once
