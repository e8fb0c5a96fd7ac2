"""Thousands of updates with everything on: memory stays where it was, and no warning comes twice.

The full scale is 5,000 updates, ``ALUM_SOAK_UPDATES=5000``: 6 to 8 minutes on 2 cores.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.quick_train import mlm_options, start
from support.tools import json_log
from tqdm import tqdm

UPDATES = int(os.environ.get("ALUM_SOAK_UPDATES", 2000))
WARMED_UP = 100  # by then everything has happened once
EVERY = 100

OPTIONS = {
    **{"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32},
    **{"tokens_per_sample": 32, "max_positions": 34, "batch_size": 4, "clip_norm": 1.0},
    **{"dropout": 0.1, "encoder_layerdrop": 0.1, "quant_noise_pq": 0.05},
    **{"quant_noise_pq_block_size": 8, "untie_weights_roberta": True, "amp": True},
    **{
        "store_ema": True,
        "ema_update_freq": 10,
        "lr_scheduler": "polynomial_decay",
        "warmup_updates": 50,
    },
    **{"alum_start_update": 10, "alum_warmup_updates": 20, "alum_log_gain_interval": 10},
    **{"alum_validate": True, "disable_validation": False, "max_valid_steps": 2},
    **{
        "save_interval_updates": 100,
        "validate_interval_updates": EVERY,
        "keep_interval_updates": 1,
        "log_interval": EVERY,
    },
    **{"total_num_update": UPDATES, "max_update": UPDATES},
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def note_memory() -> None:
    """Print the memory of the training process now and then, after the garbage is collected."""
    from alum_fairseq.tasks.alum_task import AlumTask

    train_step = AlumTask.train_step

    def noted(*args, update_num: int, **kwargs):
        if update_num % EVERY == 0:
            gc.collect()
            print(f"MEMORY {update_num} {resident_bytes()}", flush=True)
        return train_step(*args, update_num=update_num, **kwargs)

    AlumTask.train_step = noted


def memory_of(output: str) -> dict[int, int]:
    found = re.findall(r"^MEMORY (\d+) (\d+)$", output, flags=re.MULTILINE)
    return {int(update): int(size) for update, size in found}


@pytest.mark.slow
def test_memory_is_flat_and_no_warning_comes_twice(mlm_data: Path, tmp_path: Path) -> None:
    command = mlm_options(mlm_data, tmp_path / "save", **OPTIONS)
    run = start(command, tmp_path / "log", note_memory)
    with tqdm(total=UPDATES, desc="soak", unit=" update", file=sys.stderr) as bar:
        while run.alive:
            run.process.join(5)
            bar.update(max(memory_of(run.output()), default=0) - bar.n)
    output = run.wait()
    assert json_log(output, "train_inner")[-1]["num_updates"] == str(UPDATES)
    memory = memory_of(output)
    assert len(memory) == UPDATES // EVERY
    base = memory[WARMED_UP]
    after = {update: size for update, size in memory.items() if update > WARMED_UP}
    most = max(after, key=after.__getitem__)
    print(f"memory: {base >> 20} MiB at {WARMED_UP}, at most {after[most] >> 20} MiB, at {most}")
    assert after[most] <= 1.01 * base
    warnings = re.findall(
        r"^.*?\| (WARNING|ERROR) \| (.*)$|^\S*:\d+: (\w*Warning: .*)$", output, re.M
    )
    assert [text for text, times in Counter(warnings).items() if times > 1] == []
