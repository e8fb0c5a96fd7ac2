"""A run that is killed again and again ends as if nothing had happened.

SIGKILL from outside, at seeded moments: some of them any moment, the others for certain amid the
writing of a checkpoint, since what is waited for is a file that is not yet whole. The full scale
is 20 kills for each of the two tasks; the environment variable ``ALUM_KILLS`` sets another number.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fairseq.data import data_utils, indexed_dataset
from support.quick_train import Run, mlm_options, start, wait_until
from support.resuming import TIMES, assert_equal, comparable, last_state
from support.tools import json_log
from support.untrained import make_case

KILLS = int(os.environ.get("ALUM_KILLS", 20))
UPDATES_A_LIFE = 5  # more than a life makes on average ...
SPARE_UPDATES = 20  # ... and some for lives that went on because a write was over too soon

# Positions that no text reaches make a checkpoint of some 10 MB, which takes a while to write.
SHARED = {
    **{"max_positions": 25_000, "dropout": 0.1, "attention_dropout": 0.1, "clip_norm": 1.0},
    **{"update_freq": 2, "lr_scheduler": "polynomial_decay", "warmup_updates": 5},
    **{"alum_start_update": 4, "alum_warmup_updates": 30, "alum_log_gain_interval": 3},
    **{"save_interval_updates": 2, "keep_interval_updates": 2},
    **{"disable_validation": False, "max_valid_steps": 1, "alum_validate": True},
}


def make_shards(mlm_data: Path, folder: Path) -> str:
    """Two sixths of the corpus in two folders, of which fairseq takes one an epoch."""
    lines = data_utils.load_indexed_dataset(str(mlm_data / "train"))
    folders = [folder / "shard0", folder / "shard1"]
    for number, shard in enumerate(folders):
        shutil.copytree(mlm_data, shard)
        builder = indexed_dataset.make_builder(str(shard / "train.bin"), "mmap", vocab_size=1000)
        for index in range(number, len(lines), 6):
            builder.add_item(lines[index])
        builder.finalize(str(shard / "train.idx"))
    return ":".join(map(str, folders))


def mlm_command(mlm_data: Path, folder: Path, updates: int) -> list[str]:
    """Masked language modelling on sharded data, with the loader's worker process."""
    steps = {"total_num_update": updates, "max_update": updates, "num_workers": 1}
    return mlm_options(make_shards(mlm_data, folder), folder / "unused", **SHARED, **steps)


def fine_tuning_command(mlm_data: Path, folder: Path, updates: int) -> list[str]:
    """Fine-tuning of a model that was trained on the text before."""
    case = make_case("single", mlm_data, folder)
    few = {"max_update": 2, "max_positions": SHARED["max_positions"]}
    start(mlm_options(mlm_data, folder / "pretrained", **few), folder / "log").wait()
    return mlm_options(
        case.data,
        folder / "unused",
        **SHARED,
        task="alum_sentence_prediction",
        criterion="alum_sentence_prediction",
        tokens_per_sample=None,
        sample_break_mode=None,
        finetune_from_model=folder / "pretrained/checkpoint_last.pt",
        num_classes=3,
        init_token=0,
        best_checkpoint_metric="adv_accuracy",
        maximize_best_checkpoint_metric=True,
        total_num_update=updates,
        max_update=updates,
    )


COMMANDS = {"alum_mlm": mlm_command, "alum_sentence_prediction": fine_tuning_command}


@dataclass
class Training:
    """One command, given again and again, and what its lives left behind."""

    command: list[str]
    save_dir: Path
    lives: list[str] = field(default_factory=list)  # what each printed

    def start(self) -> Run:
        log = self.save_dir.with_name(f"{self.save_dir.name}-{len(self.lives)}.log")
        return start([*self.command, "--save-dir", str(self.save_dir)], log)

    def end(self, run: Run) -> None:
        self.lives.append(run.output())


def unfinished(folder: Path, pattern: str, whole: int) -> set[Path]:
    """Files of this name that hold some of a checkpoint, but not all of it."""
    found = set()
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # it has just got its name
            if 0 < path.stat().st_size < 0.9 * whole:
                found.add(path)
    return found


def wait_amid_a_write(run: Run, folder: Path, pattern: str, whole: int, after: int) -> None:
    """Return when a file of this name holds some of a checkpoint, but not all of it.

    Args:
        run: what writes; the wait ends with it, too.
        folder: where.
        pattern: of file names.
        whole: size of a whole checkpoint, in bytes.
        after: how many such files to let go by.
    """
    before: set[Path] = set()
    gone_by = 0

    def amid() -> bool:
        nonlocal before, gone_by
        now = unfinished(folder, pattern, whole)
        gone_by += len(before - now)
        before = now
        return bool(now) and gone_by >= after

    wait_until(amid, run)


# What is waited for before a kill: the first file of a save, a copy of it, or nothing.
KINDS = {"writing": "checkpoint_[0-9]*", "copying": "checkpoint_[lb]*", "any moment": None}


def kill_again_and_again(training: Training, kills: int, whole: int, seed: int) -> dict[str, int]:
    """Start and kill; how many kills of each kind there were, those amid a write proven to be."""
    draw = random.Random(seed)
    wanted = [list(KINDS)[i % len(KINDS)] for i in range(kills)]
    draw.shuffle(wanted)
    done = dict.fromkeys(KINDS, 0)
    missed = 0
    while wanted:
        kind = wanted.pop()
        run = training.start()
        if KINDS[kind] is None:
            time.sleep(draw.uniform(0, 3))
        else:
            wait_amid_a_write(run, training.save_dir, KINDS[kind], whole, after=draw.randrange(3))
        assert run.alive, f"it ended by itself:\n{run.output()[-3000:]}"
        run.kill()
        training.end(run)
        proven = KINDS[kind] is None or unfinished(training.save_dir, "*", whole)
        done[kind] += bool(proven)
        if not proven:  # the write was over before the signal came
            wanted.append(kind)
            missed += 1
            assert missed <= kills, "the files are written too fast to be caught"
        print(f"kill {sum(done.values())}/{kills}: {kind}", file=sys.stderr)
    return done


def logged(outputs: list[str]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """What was logged for each update, once for every time that it was made."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for output in outputs:
        for kind, prefix in (("train_inner", ""), ("valid", "valid_")):
            for line in json_log(output, kind):
                kept = {k: v for k, v in line.items() if k.removeprefix(prefix) not in TIMES}
                # The last known gain is not known to a process that has measured none.
                kept.pop("adv_gain", None)
                found.setdefault((kind, int(line[prefix + "num_updates"])), []).append(kept)
    return found


def check(name: str, kills: int, mlm_data: Path, folder: Path, seed: int) -> None:
    updates = SPARE_UPDATES + UPDATES_A_LIFE * kills
    command = COMMANDS[name](mlm_data, folder, updates)
    unbroken = Training(command, folder / "unbroken")
    run = unbroken.start()
    run.wait()
    unbroken.end(run)
    whole = (unbroken.save_dir / "checkpoint_last.pt").stat().st_size

    killed = Training(command, folder / "killed")
    done = kill_again_and_again(killed, kills, whole, seed)
    assert sum(done.values()) == kills
    assert min(done["writing"], done["copying"]) > 0
    run = killed.start()
    run.wait()
    killed.end(run)

    assert_equal(*(comparable(last_state(run.save_dir)) for run in (killed, unbroken)))
    expected, got = logged(unbroken.lives), logged(killed.lives)
    assert [n for kind, n in expected if kind == "train_inner"] == list(range(1, updates + 1))
    assert got.keys() == expected.keys()
    for key, [line] in expected.items():
        assert all(again == line for again in got[key]), key
    assert sum(map(len, got.values())) > len(got)  # some updates were made again
    assert any(float(line[0].get("adv_loss", 0)) > 0 for line in expected.values())
    for training in (unbroken, killed):  # not to fill the disk
        shutil.rmtree(training.save_dir)


def test_killed_amid_checkpoints_a_run_ends_as_if_nothing_had_happened(
    mlm_data: Path, tmp_path: Path
) -> None:
    check("alum_mlm", 2, mlm_data, tmp_path, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_many_times_a_run_ends_as_if_nothing_had_happened(
    name: str, mlm_data: Path, tmp_path: Path
) -> None:
    check(name, KILLS, mlm_data, tmp_path, seed=1)


def test_a_broken_checkpoint_is_refused_and_the_newest_whole_one_is_named(
    mlm_data: Path, tmp_path: Path
) -> None:
    """As a run without the plugin, or a full disk, may have left it."""
    save = tmp_path / "save"
    command = mlm_options(mlm_data, save, max_update=3, save_interval_updates=1)
    start(command, tmp_path / "log").wait()
    last = save / "checkpoint_last.pt"
    for path in (last, save / "checkpoint_1_3.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    again = start(command, tmp_path / "again")
    assert (
        again.wait(check=False)
        .splitlines()[-1]
        .endswith(
            f"{last} is no checkpoint, or was cut short. The newest whole one beside it is "
            f"checkpoint_1_2.pt: to go on from there, copy it to {last}"
        )
    )
    assert again.process.exitcode == 1
    shutil.copyfile(save / "checkpoint_1_2.pt", last)
    assert "num_updates: 3 >= max_update: 3" in start(command, tmp_path / "log").wait()
