"""A run that is stopped and goes on ends as one that was never stopped, to the bit.

Over the options that keep state of their own. What is killed amid a write: test_kill_and_resume.
"""

from __future__ import annotations

import signal
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from support.in_process import everything_in
from support.quick_train import Before, free_port, mlm_options, rank_options, start
from support.resuming import Killed, assert_equal, comparable, covering, last_state
from support.tools import run_tool

from alum_fairseq.compat import resume

SHARED = {
    **{"max_update": None, "max_epoch": 3, "tokens_per_sample": 32, "dropout": 0.1},
    **{"disable_validation": False, "alum_log_gain_interval": 0},
}
FP16 = {"fp16": True, "fp16_no_flatten_grads": True, "fp16_init_scale": 4}
WINDOW = {"fp16_scale_window": 4}  # fairseq wants it said where --update-freq changes
# No epoch is better than the first.
PLATEAU = {"lr_scheduler": "reduce_lr_on_plateau", "lr_shrink": 0.5, "lr_threshold": 1e9}
IDLE = {"lr": 1e-30, "patience": 2, "max_epoch": 9}

# Some rows are left to scripts/test.sh --all.
SLOW = {
    *("memory-efficient fp16", "memory-efficient bf16, annealed", "amp, cosine"),
    *("adafactor", "nag", "plateau, warm-up", "SMART"),
}

# A row: the epoch after which the run is stopped, and its options. Those that go together have
# nothing to do with each other.
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "no workers, schedule": (2, {"alum_start_update": 2, "alum_warmup_updates": 7}),
    "a worker, curriculum": (1, {"num_workers": 1, "curriculum": 2}),
    "two workers, bf16, average": (1, {"num_workers": 2, "bf16": True, "store_ema": True}),
    "fp16 whose scale grows": (2, {**FP16, "fp16_scale_window": 4, "update_freq": "1,2,2"}),
    "memory-efficient fp16": (
        1,
        {**FP16, "memory_efficient_fp16": True, "lr_scheduler": "inverse_sqrt"},
    ),
    "memory-efficient bf16, annealed": (
        2,
        {"memory_efficient_bf16": True, "lr_scheduler": "fixed", "force_anneal": 2},
    ),
    "amp, cosine": (
        1,
        {"amp": True, "lr_scheduler": "cosine", "max_update": 9, "lr_period_updates": 4},
    ),
    "adafactor": (1, {"optimizer": "adafactor"}),
    "nag": (1, {"optimizer": "nag"}),
    "plateau": (2, {**PLATEAU, "lr_patience": 1, "max_epoch": 5}),
    "plateau, after the rate fell": (3, {**PLATEAU, "lr_patience": 0, "max_epoch": 5}),
    "plateau, warm-up": (1, {**PLATEAU, "warmup_updates": 5}),
    "patience": (2, IDLE),
    "SMART": (1, {"alum_preset": "smart", "store_ema": True}),
}


def train(
    data: Path | str, save: Path, options: dict[str, Any], before: Before | None = None, **more: Any
) -> str:
    """What one life of a run prints."""
    command = mlm_options(data, save, **{**SHARED, **options, **more})
    log = save.with_suffix(".log")
    log.unlink(missing_ok=True)
    return start(command, log, before).wait()


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] * (row in SLOW)) for row in ROWS]
)
def test_stopped_and_resumed_it_ends_as_never_stopped(
    row: str, few_data: Path, tmp_path: Path
) -> None:
    stopped_after, options = ROWS[row]
    train(few_data, tmp_path / "unbroken", options)
    train(few_data, tmp_path / "stopped", options, max_epoch=stopped_after)
    train(few_data, tmp_path / "stopped", options)
    expected, found = last_state(tmp_path / "unbroken"), last_state(tmp_path / "stopped")
    assert_equal(comparable(found), comparable(expected))


# Where a run is killed; each epoch has 3 updates, or 2 with --update-freq 2.
KILLED: dict[str, tuple[Killed, dict[str, Any]]] = {
    "after the save of an epoch": (Killed("Saved checkpoint"), {}),
    "in an epoch, saved before it": (Killed("train_inner", 5), {}),
    "in an epoch, saved in it": (Killed("train_inner", 6), {"save_interval_updates": 1}),
    "after the last save": (Killed("done training"), {}),
}
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "killed": {name: options for name, (_, options) in KILLED.items()},
    "scheduler": {
        "polynomial": {
            **{"lr_scheduler": "polynomial_decay", "warmup_updates": 3, "total_num_update": 12}
        },
        "inverse_sqrt": {"lr_scheduler": "inverse_sqrt", "warmup_updates": 3},
        "fixed": {"lr_scheduler": "fixed", "force_anneal": 2},
        "cosine": {"lr_scheduler": "cosine", "lr_period_updates": 4, "warmup_updates": 2},
        "plateau": {**PLATEAU, "lr_patience": 0},
        "tri_stage": {
            "lr_scheduler": "tri_stage",
            **{"warmup_steps": 2, "hold_steps": 2, "decay_steps": 4},
        },
    },
    "precision": {
        **{"float32": {}, "amp": {"amp": True}},
        "fp16": {**FP16, **WINDOW},
        "bf16": {"bf16": True, **WINDOW},
        "memory-efficient fp16": {**FP16, **WINDOW, "memory_efficient_fp16": True},
        "memory-efficient bf16": {"memory_efficient_bf16": True, **WINDOW},
    },
    "optimizer": {name: {"optimizer": name} for name in ("adam", "adafactor", "nag", "sgd")},
    "workers": {str(number): {"num_workers": number} for number in range(3)},
    "data": {"whole": {}, "sharded": {}},
    "stopping": {"never": {}, "patience": {"patience": 1}},
    "alpha": {
        "constant": {},
        "scheduled": {"alum_start_update": 2, "alum_warmup_updates": 4},
    },
    "EMA": {"none": {}, "kept": {"store_ema": True, "ema_decay": 0.9}},
    "updates": {
        **{"of a batch": {}, "of two batches": {"update_freq": 2}},
        "of more later": {"update_freq": "1,2,2"},
    },
}


def forbidden(row: dict[str, str]) -> bool:
    """What fairseq refuses: half precision that an optimizer cannot; and no time for a kill."""
    efficient = row.get("precision", "").startswith("memory-efficient")
    often = row.get("killed") == "in an epoch, saved in it"  # validates with each save
    return (efficient and row.get("optimizer") == "sgd") or (
        often and row.get("stopping") == "patience"
    )


COVERING = list(covering(FACTORS, forbidden))
# Those of every day: all places of a kill, with state of every kind.
DAILY = [
    {"killed": "after the save of an epoch", "scheduler": "plateau", "precision": "bf16"},
    {"killed": "in an epoch, saved before it", "data": "sharded", "EMA": "kept", "workers": "1"},
    {"killed": "in an epoch, saved in it", "precision": "fp16", "updates": "of two batches"},
    {"killed": "after the last save", "stopping": "patience", "alpha": "scheduled"},
]


@pytest.fixture(scope="module")
def shards(few_data: Path, mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two folders, of which fairseq takes one an epoch: the few data, and others."""
    folder = tmp_path_factory.mktemp("shards")
    lines = (mlm_data.parent / "valid").read_text().splitlines()
    (folder / "text").write_text("\n".join(lines[20:32]) + "\n")
    run_tool(
        *("fairseq-preprocess", "--only-source", "--srcdict", mlm_data / "dict.txt"),
        *("--trainpref", folder / "text", "--validpref", folder / "text"),
        *("--destdir", folder / "bin"),
    )
    return f"{few_data}:{folder / 'bin'}"


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=", ".join(row.values())) for row in DAILY]
    + [pytest.param(row, id=", ".join(row.values()), marks=pytest.mark.slow) for row in COVERING],
)
def test_killed_it_ends_as_never_killed(
    row: dict[str, str], few_data: Path, shards: str, tmp_path: Path
) -> None:
    options = dict(chain(*(FACTORS[name][value].items() for name, value in row.items())))
    options = {"optimizer": "adam", "alum_log_gain_interval": 2, **options}
    data = shards if row.get("data") == "sharded" else few_data
    save = tmp_path / "killed"
    train(data, tmp_path / "unbroken", options)
    kill, _ = KILLED[row["killed"]]
    run = start(mlm_options(data, save, **{**SHARED, **options}), tmp_path / "first.log", kill)
    run.wait(check=False)
    assert run.process.exitcode == -signal.SIGKILL, run.output()[-3000:]
    left = everything_in(save)
    output = train(data, save, options)
    assert ("nothing to do" in output) == (row["killed"] == "after the last save")
    if "nothing to do" in output:
        assert everything_in(save) == left
    expected, found = last_state(tmp_path / "unbroken"), last_state(save)
    assert_equal(comparable(found), comparable(expected))
    left = everything_in(save)
    assert "nothing to do" in train(data, save, options)
    assert everything_in(save) == left


@pytest.mark.slow
def test_several_processes_go_on_as_never_stopped(few_data: Path, tmp_path: Path) -> None:
    """The first reads the checkpoint, and hands the others what they need of it."""

    def train_two(save: Path, **more: Any) -> None:
        port, options = free_port(), {**SHARED, "bf16": True, "num_workers": 1, **more}
        ranks = [
            start(
                mlm_options(few_data, save, **options, **rank_options(rank, port)),
                save.with_name(f"{save.name}-{rank}.log"),
            )
            for rank in range(2)
        ]
        for run in ranks:
            run.wait()

    train_two(tmp_path / "unbroken")
    train_two(tmp_path / "stopped", max_epoch=1)
    train_two(tmp_path / "stopped")
    found, expected = (last_state(tmp_path / name) for name in ("stopped", "unbroken"))
    assert_equal(comparable(found), comparable(expected))


OVER = {
    "with 4 updates (--max-update 4)": {"max_update": 4},
    "with 1 epochs (--max-epoch 1)": {"max_epoch": 1},
    "with 0.0 hours (--stop-time-hours 1e-06)": {"stop_time_hours": 1e-6},
    "with no better validation in the last 2 (--patience 2)": IDLE,
}


@pytest.mark.parametrize("why", OVER)
def test_a_run_that_is_over_is_left_alone(why: str, few_data: Path, tmp_path: Path) -> None:
    save = tmp_path / "save"
    train(few_data, save, OVER[why])
    left = {path: path.read_bytes() for path in save.iterdir()}
    output = train(few_data, save, OVER[why])
    [line] = [line for line in output.splitlines() if "nothing to do" in line]
    assert line.endswith(f"nothing to do: the run in {save} is over, {why}")
    assert {path: path.read_bytes() for path in save.iterdir()} == left


def test_it_goes_on_where_a_limit_is_lifted(few_data: Path, tmp_path: Path) -> None:
    save = tmp_path / "save"
    train(few_data, save, {"max_update": 2})
    assert "nothing to do" not in train(few_data, save, {"max_update": 5})
    assert last_state(save)["optimizer_history"][-1]["num_updates"] == 5


def train_elsewhere_first() -> None:
    """As ``--multirun`` of hydra: another run in the same process, before."""
    from fairseq_cli.train import cli_main

    place = sys.argv.index("--save-dir") + 1
    save, rate = sys.argv[place], sys.argv[sys.argv.index("--lr") + 1]
    sys.argv[place] = f"{save}-first"
    sys.argv += ["--lr", "1e-3"]  # the last one counts
    cli_main()
    sys.argv[place], sys.argv[-1] = save, rate


def test_a_run_knows_nothing_of_another_in_its_process(few_data: Path, tmp_path: Path) -> None:
    train(few_data, tmp_path / "alone", IDLE)
    train(few_data, tmp_path / "second", IDLE, train_elsewhere_first)
    alone, second = last_state(tmp_path / "alone"), last_state(tmp_path / "second")
    assert (tmp_path / "second/checkpoint_best.pt").is_file()
    assert_equal(comparable(second), comparable(alone))


def test_weights_that_were_changed_between_two_lives_are_taken(
    few_data: Path, tmp_path: Path
) -> None:
    """Averages of checkpoints, for instance: the float32 weights in the checkpoint are others."""
    save, idle = tmp_path / "save", {"bf16": True, "lr": 1e-30}
    train(few_data, save, idle, max_epoch=1)
    state = torch.load(save / "checkpoint_last.pt")
    doubled = {name: 2 * weight for name, weight in state["model"].items()}
    torch.save({**state, "model": doubled}, save / "checkpoint_last.pt")
    train(few_data, save, idle)
    for name, weight in last_state(save)["model"].items():
        torch.testing.assert_close(weight, doubled[name], atol=1e-20, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3),
        lambda: DynamicLossScaler(init_scale=8.0, scale_window=3),
    ],
    ids=["amp", "fp16"],
)
def test_the_scale_of_the_loss_grows_when_it_would_have_grown(make: Any) -> None:
    def updates(scaler: Any, number: int) -> list[float]:
        weight = torch.nn.Parameter(torch.ones(1))
        sgd = torch.optim.SGD([weight], lr=0.1)
        scales = []
        for _ in range(number):
            weight.grad = torch.ones(1)
            if isinstance(scaler, DynamicLossScaler):
                scaler.update()
                scales.append(scaler.loss_scale)
            else:
                scaler.scale(torch.ones(1))
                scaler.step(sgd)
                scaler.update()
                scales.append(scaler.get_scale())
        return scales

    unbroken, stopped, resumed = make(), make(), make()
    expected = updates(unbroken, 8)
    first = updates(stopped, 4)
    if isinstance(resumed, DynamicLossScaler):
        resumed.loss_scale = stopped.loss_scale  # which fairseq saves
    resume._restore_scaler(resumed, resume._scaler_state(stopped))
    assert first + updates(resumed, 4) == expected
    assert len(set(expected)) > 2


def test_stock_fairseq_is_left_as_it_is() -> None:
    """Neither of them ours: nothing is added to its checkpoints."""
    stock = SimpleNamespace(task=SimpleNamespace(), get_criterion=SimpleNamespace)
    assert not resume.trains_ours(stock)


def test_other_data_in_the_same_folder_is_said(few_data: Path, tmp_path: Path) -> None:
    save, other = tmp_path / "save", tmp_path / "other"
    other.mkdir()
    for path in few_data.iterdir():
        (other / path.name).symlink_to(path)
    train(few_data, save, {"max_update": 2})
    said = f"was trained on {few_data}, and this run goes on from it with {other}"
    assert said not in train(few_data, save, {"max_update": 2})
    assert said in train(other, save, {"max_update": 2})


def test_fewer_layers_of_a_checkpoint_are_kept_and_trained_on(
    few_data: Path, tmp_path: Path
) -> None:
    train(few_data, tmp_path / "deep", {"encoder_layers": 4, "max_update": 1})
    kept = {
        **{"encoder_layers": 4, "encoder_layers_to_keep": "0,2"},
        **{"finetune_from_model": tmp_path / "deep/checkpoint_last.pt"},
    }
    idle = {**kept, "lr": 1e-30, "max_update": 1}
    train(few_data, tmp_path / "idle", idle)
    deep, idle = (last_state(tmp_path / name)["model"] for name in ("deep", "idle"))
    layer = "encoder.sentence_encoder.layers.{}.fc1.weight"
    assert torch.equal(idle[layer.format(0)], deep[layer.format(0)])
    assert torch.equal(idle[layer.format(1)], deep[layer.format(2)])
    assert layer.format(2) not in idle

    train(few_data, tmp_path / "unbroken", kept)
    train(few_data, tmp_path / "stopped", kept, max_epoch=1)
    train(few_data, tmp_path / "stopped", kept)
    found, expected = (last_state(tmp_path / name) for name in ("stopped", "unbroken"))
    assert_equal(comparable(found), comparable(expected))
