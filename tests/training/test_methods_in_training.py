"""fairseq-train with methods that ask more of it: SMART's momentum model, FreeLB's passes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from support.in_process import fairseq_train
from support.quick_train import mlm_options, start, wait_until

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.tasks import alum_task


def smart_options(data: Path, save_dir: Path, **options: Any) -> list[str]:
    return mlm_options(data, save_dir, **{"alum_preset": "smart", "store_ema": True, **options})


def logged(log: str, key: str) -> list[float]:
    """What every update logged under a name, whatever stands before it in the line."""
    lines = [json.loads(line) for line in re.findall(r'\{".*\}$', log, flags=re.MULTILINE)]
    return [float(line[key]) for line in lines if key in line]


def test_smart_s_momentum_is_slower_after_a_tenth_of_the_updates(
    mlm_data: Path, tmp_path: Path
) -> None:
    """The decay that is logged, and the model that is made with it."""
    updates = 20
    options = {"max_update": updates, "save_interval_updates": 1, "log_interval": 1}
    log = start(smart_options(mlm_data, tmp_path / "save", **options), tmp_path / "log").wait()
    assert logged(log, "ema_decay") == [0.99] * 2 + [0.999] * (updates - 2)
    losses = logged(log, "adv_loss")
    assert all(map(math.isfinite, losses))
    # The first update has a momentum model that is the model itself.
    assert losses[-1] > 10 * losses[0] > 0

    before, after, later = (
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / f"save/checkpoint_1_{n}.pt"))
        for n in (1, 2, 3)
    )
    for decay, old, new in ((0.99, before, after), (0.999, after, later)):
        for name, mean in old["extra_state"]["ema"].items():
            if name.endswith("version"):
                continue
            # fairseq's EMA moves a weight of two names twice: the word embeddings, as the head has.
            tied = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            kept = decay**2 if tied else decay
            expected = kept * mean + (1 - kept) * new["model"][name]
            found = new["extra_state"]["ema"][name]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("task", ["alum_masked_lm", "masked_lm"])
def test_smart_is_refused_without_a_momentum_model(
    task: str, mlm_data: Path, tmp_path: Path
) -> None:
    done = fairseq_train(*smart_options(mlm_data, tmp_path, store_ema=False, task=task))
    assert not done.began
    assert done.error is not None
    assert "\n" not in done.error
    assert "--alum-proximal is 1" in done.error
    assert "--store-ema" in done.error
    assert "--alum-proximal 0" in done.error


def test_smart_without_its_momentum_term_needs_no_such_model(
    mlm_data: Path, tmp_path: Path
) -> None:
    done = fairseq_train(
        *smart_options(mlm_data, tmp_path, store_ema=False, alum_proximal=0, max_update=1)
    )
    assert done.error is None
    assert done.began


def test_smart_starts_from_a_checkpoint_without_a_momentum_model(
    mlm_data: Path, tmp_path: Path
) -> None:
    """Which then is the model that training starts from, weight by weight."""
    assert fairseq_train(*mlm_options(mlm_data, tmp_path / "before", max_update=2)).error is None
    start = tmp_path / "before/checkpoint_last.pt"
    done = fairseq_train(
        *smart_options(mlm_data, tmp_path / "after", finetune_from_model=start, max_update=1)
    )
    assert done.error is None
    before, after = (
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
        for path in (start, tmp_path / "after/checkpoint_last.pt")
    )
    [name] = [n for n in before["model"] if n.endswith("layers.0.fc1.weight")]
    old, new = before["model"][name], after["model"][name]
    assert not torch.equal(old, new)
    torch.testing.assert_close(
        after["extra_state"]["ema"][name], 0.99 * old + 0.01 * new, rtol=1e-6, atol=1e-8
    )


def test_a_decay_that_was_asked_for_is_kept(mlm_data: Path, tmp_path: Path) -> None:
    done = fairseq_train(*smart_options(mlm_data, tmp_path, ema_decay=0.5, max_update=4))
    assert done.error is None
    assert logged(done.log, "ema_decay") == [0.5] * 4


def test_other_methods_leave_fairseq_s_decay_alone(mlm_data: Path, tmp_path: Path) -> None:
    options = {"alum_preset": "freelb", "max_update": 2}
    done = fairseq_train(*smart_options(mlm_data, tmp_path, **options))
    assert done.error is None
    assert logged(done.log, "ema_decay") == [0.9999] * 2


# FreeLB.


@pytest.mark.parametrize("preset", ["freelb", "smart"])
def test_killed_and_resumed_a_run_ends_as_the_unbroken_one(
    preset: str, mlm_data: Path, tmp_path: Path
) -> None:
    """To the bit: weights, optimizer, momentum model, what is logged."""
    options = {
        **{"alum_preset": preset, "store_ema": True, "max_update": 4, "save_interval_updates": 1},
        **{"dropout": 0.1, "update_freq": 2, "clip_norm": 1.0},
    }
    logs = []
    for name in ("unbroken", "killed"):
        save = tmp_path / name
        command = mlm_options(mlm_data, save, **options)
        run = start(command, tmp_path / f"{name}.log")
        if name == "killed":
            second = save / "checkpoint_1_2.pt"
            wait_until(second.exists, run)
            run.kill()
            assert not (save / "checkpoint_1_4.pt").exists()
            run = start(command, tmp_path / "resumed.log")
            assert "Loaded checkpoint" in run.wait()
        logs.append(run.wait())
    states = [
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt"))
        for name in ("unbroken", "killed")
    ]
    assert states[0]["optimizer_history"][-1]["num_updates"] == 4
    for part in ("model", "ema"):
        unbroken, resumed = (state if part == "model" else state["extra_state"] for state in states)
        assert unbroken[part].keys() == resumed[part].keys()
        for key, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][key]), (part, key)
    moments = [state["last_optimizer_state"]["state"] for state in states]
    for number, entries in moments[0].items():
        for key, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[1][number][key]))
    for key in ("num_updates", "loss", "adv_loss", "adv_norm", "gnorm"):
        assert logged(logs[0], key)[-1] == logged(logs[1], key)[-1], key


@pytest.mark.parametrize(("preset", "scale"), [("freelb", 64.0), ("calibrated", 1.0)])
def test_the_task_tells_the_criterion_of_the_loss_scale(
    preset: str, scale: float, mlm_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes gradients before the backward pass; a power of two changes none of them."""
    told: list[float] = []
    prepare = AlumCriterion.prepare_update

    def noted(self: Any, num_updates: int, loss_scale: float = 1.0, *args: Any) -> None:
        told.append(loss_scale)
        prepare(self, num_updates, loss_scale, *args)

    monkeypatch.setattr(AlumCriterion, "prepare_update", noted)
    norms = []
    for optimizers in (1.0, 64.0):
        monkeypatch.setattr(alum_task, "loss_scale_of", lambda _, scale=optimizers: scale)
        save = tmp_path / str(optimizers)
        done = fairseq_train(*mlm_options(mlm_data, save, alum_preset=preset, max_update=2))
        assert done.error is None
        norms.append(logged(done.log, "gnorm"))
    assert told[-1] == scale
    assert norms[0] == norms[1]
    assert len(norms[0]) >= 2
