"""Two workers compute what one computes from all of the batch, whatever they are wrapped in."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.tasks import FairseqTask
from support.criteria_cases import KINDS, MEMORIES, Batch, Case, make_case
from support.quick_train import CONTEXT, free_port, mlm_options, rank_options, start
from support.tools import json_log
from test_kill_and_resume import make_shards
from torch import Tensor, distributed, nn

from alum_fairseq.adversarial import adversary

WORKERS = 2
WRAPPERS = ("legacy", "torch")


def same_noise_everywhere() -> None:
    """Make the random start depend on a token's position alone, not on worker, row or padding."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(64, 64, generator=generator, dtype=torch.float64)

    normal = Tensor.normal_

    def normal_(noise: Tensor, *args: Any, **options: Any) -> Tensor:
        if noise.dim() != 3:  # a weight of the model
            return normal(noise, *args, **options)
        return noise.copy_(pattern[: noise.shape[1], : noise.shape[2]])

    Tensor.normal_ = normal_


def train_step(model: nn.Module, criterion: nn.Module, batch: Batch, dummy: bool) -> dict[str, Any]:
    """Forward and backward as fairseq's task does it; sums, as its trainer adds them up."""
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    _, sample_size, log = FairseqTask.train_step(
        None, batch, model, criterion, optimizer, update_num=0, ignore_grad=dummy
    )
    kept = 0 if dummy else 1
    sums = {name: kept * float(log[name]) for name in ("loss", "_alum_loss", "_alum_skipped")}
    return {**sums, "sample_size": kept * float(sample_size)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def wrap(model: nn.Module, wrapper: str) -> nn.Module:
    group = distributed.group.WORLD
    if wrapper == "legacy":
        return ModuleProxyWrapper(LegacyDistributedDataParallel(model, group))
    # As with fairseq's --find-unused-parameters: in fine-tuning the LM head has no gradient.
    ddp = nn.parallel.DistributedDataParallel(
        model, process_group=group, find_unused_parameters=True, broadcast_buffers=False
    )
    return ModuleProxyWrapper(ddp)


def work_on(case: Case, wrapper: str, rank: int) -> dict[str, Any]:
    """Two updates of one worker (DDP complains of an unfinished first); the second's outcome."""
    model = wrap(case.model, wrapper)
    part = case.parts[rank]
    for _ in range(2):
        model.zero_grad()
        batch = case.parts[0] if part is None else part
        sums = train_step(model, case.criterion, batch, dummy=part is None)
        if wrapper == "legacy":
            model.module.all_reduce_grads()
    return {"sums": sums, "gradients": gradients(case.model)}


def passes_before_buckets(memory: str) -> list[int]:
    """How many layers' passes are behind a backward pass as it hands DDP each of its buckets."""
    case = make_case("mlm", memory)
    model = nn.parallel.DistributedDataParallel(case.model, bucket_cap_mb=0.01)
    passes, counts = 0, []

    def count(_: Tensor) -> None:
        nonlocal passes
        passes += 1

    def watch(layer: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(count)

    def bucket_is_ready(_, bucket):  # torch looks at its annotations
        counts.append(passes)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, bucket_is_ready)
    for layer in case.model.encoder.sentence_encoder.layers:
        layer.register_forward_hook(watch)
    for _ in range(2):  # the buckets are made anew after the first
        loss = case.criterion(ModuleProxyWrapper(model), case.whole)[0]
        passes = 0
        counts.clear()
        loss.backward()
    return [*counts, passes]


def drawn_noise() -> Tensor:
    """What a worker finds in a batch that all workers have, after fairseq seeded all alike."""
    case = make_case("mlm", "normal")
    found = []
    perturb = adversary.Adversary.perturb
    adversary.Adversary.perturb = lambda *a, **k: found.append(perturb(*a, **k)) or found[-1]
    torch.manual_seed(11)
    train_step(case.model, case.criterion, case.whole, dummy=False)
    adversary.Adversary.perturb = perturb
    return found[0]


def work(rank: int, port: int, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=WORKERS)
    outcome: dict[Any, Any] = {"noise": drawn_noise()}
    outcome |= {memory: passes_before_buckets(memory) for memory in MEMORIES}
    same_noise_everywhere()
    for kind in KINDS:
        for memory in MEMORIES:
            for wrapper in WRAPPERS:
                try:
                    done = work_on(make_case(kind, memory), wrapper, rank)
                except RuntimeError as error:  # DDP's, on all workers
                    done = str(error)
                outcome[kind, memory, wrapper] = done
    torch.save(outcome, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What two processes made of every case."""
    folder, port = tmp_path_factory.mktemp("workers"), free_port()
    workers = [CONTEXT.Process(target=work, args=(r, port, folder)) for r in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_make_the_gradients_of_one_with_the_whole_batch(
    kind: str,
    memory: str,
    wrapper: str,
    outcomes: list[dict[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "normal_", Tensor.normal_)  # put back afterwards
    same_noise_everywhere()
    case = make_case(kind, memory)
    expected = train_step(case.model, case.criterion, case.whole, dummy=False)
    assert expected["_alum_loss"] > 1e-3
    assert expected["_alum_skipped"] == 0
    got = [outcome[kind, memory, wrapper] for outcome in outcomes]
    assert not isinstance(got[0], str), got[0]
    for name, value in expected.items():
        total = sum(worker["sums"][name] for worker in got)
        assert total == pytest.approx(value, rel=1e-6), name
    expected_gradients = gradients(case.model)
    largest = max(g.abs().max() for g in expected_gradients.values())
    for worker in got:
        for name, gradient in expected_gradients.items():
            # Wrappers average over the workers; fairseq multiplies by their number.
            difference = (WORKERS * worker["gradients"][name] - gradient).abs().max()
            assert difference < 1e-6 * largest, name
    # All of it would hold without an adversary as well: it is not what makes the gradients agree.
    case = make_case(kind, memory)
    case.criterion.schedule = replace(case.criterion.schedule, alpha=0.0)
    train_step(case.model, case.criterion, case.whole, dummy=False)
    plain = gradients(case.model)
    assert any((plain[n] - g).abs().max() > 1e-3 * largest for n, g in expected_gradients.items())


def test_gradients_are_reduced_while_the_backward_pass_goes_on(
    outcomes: list[dict[Any, Any]],
) -> None:
    *buckets, last = outcomes[0]["low"]
    assert outcomes[0]["low"] == outcomes[0]["normal"]
    assert last == 2 * 2  # layers, of the clean and of the perturbed pass
    assert buckets[0] < last


def test_workers_draw_different_noise(outcomes: list[dict[Any, Any]]) -> None:
    first, second = (outcome["noise"] for outcome in outcomes)
    assert first.shape == second.shape
    assert (first - second).abs().max() > 0.1 * first.abs().max()


def test_two_ranks_train_and_resume_as_one_that_accumulates(mlm_data: Path, tmp_path: Path) -> None:
    """fairseq-train, over the end of an epoch with an odd number of batches."""
    data = make_shards(mlm_data, tmp_path)
    # Adam would blow up roundings where gradients are tiny.
    options = {"optimizer": "sgd", "lr": 0.5, "max_update": 15, "alum_start_update": 2}
    options |= {"alum_epsilon": 0.3, "alum_noise_std": 0.05, "required_batch_size_multiple": 1}
    options |= {"dropout": 0, "attention_dropout": 0}
    one = mlm_options(data, tmp_path / "one", update_freq=2, **options)
    alone = start(one, tmp_path / "one.log", same_noise_everywhere).wait()
    together = ""
    for max_update in (6, options["max_update"]):  # it goes on from a checkpoint in the middle
        port = free_port()
        commands = [
            mlm_options(
                data,
                tmp_path / "two",
                **{**options, "max_update": max_update},
                **rank_options(rank, port),
            )
            for rank in range(WORKERS)
        ]
        ranks = [
            start(command, tmp_path / f"{max_update}-{rank}.log", same_noise_everywhere)
            for rank, command in enumerate(commands)
        ]
        together += [run.wait() for run in ranks][0]  # noqa: RUF015  # all of them are waited for
    expected, got = (json_log(output, "train_inner") for output in (alone, together))
    assert [line["bsz"] for line in got] == [line["bsz"] for line in expected]
    assert len({line["bsz"] for line in expected}) > 1  # an uneven last batch
    for mine, its in zip(got, expected, strict=True):
        for name in ("loss", "adv_loss", "gnorm"):
            assert float(mine.get(name, 0)) == pytest.approx(float(its.get(name, 0)), abs=2e-3)
    models = [
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt"))
        for name in ("one", "two")
    ]
    for name, weight in models[0]["model"].items():
        torch.testing.assert_close(models[1]["model"][name], weight, rtol=1e-4, atol=1e-5)
