"""fairseq's own training gives the same with the plugin loaded as without: to the bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.options import SMALL_MODEL, command_line
from support.places import PLUGIN
from test_train import assert_same_training, load

# Several trainings in one process, since each start takes seconds.
PROGRAM = """\
import json, sys
from fairseq_cli.train import cli_main
for words in json.load(sys.stdin):
    sys.argv = ["fairseq-train", *words]
    cli_main()
print("plugin:", "alum_fairseq" in sys.modules)
"""
TRAINING = {
    **{"optimizer": "adam", "adam-betas": "(0.9, 0.98)", "lr": "0.002,0.001", "batch-size": 8},
    **{"max-update": 4, "update-freq": 2, "max-valid-steps": 2, "cpu": True, "num-workers": 0},
    **{"no-epoch-checkpoints": True, "log-format": "json", "log-interval": 1, "seed": 3},
    # Without the plugin, a loader that is still ahead at the end may abort the process.
    **{"data-buffer-size": 0, "dropout": 0.1},
}
SMALL_ENCODER = {name: value for name, value in SMALL_MODEL.items() if name.startswith("encoder")}
KINDS: dict[str, dict[str, Any]] = {
    "masked_lm": {"criterion": "masked_lm", **SMALL_MODEL, "sample-break-mode": "none"},
    "sentence_prediction": {
        **{"criterion": "sentence_prediction", "arch": "roberta", **SMALL_ENCODER},
        **{"num-classes": 3, "max-positions": 40, "init-token": 0},
    },
    "translation": {
        **{"arch": "transformer", "criterion": "label_smoothed_cross_entropy", **SMALL_ENCODER},
        **{"label-smoothing": 0.1, "decoder-layers": 1, "decoder-embed-dim": 32},
        **{"decoder-ffn-embed-dim": 64, "decoder-attention-heads": 2},
        **{"source-lang": "a", "target-lang": "b"},
    },
    # Options that fairseq evaluates as Python.
    "language_modeling": {
        **{"arch": "fconv_lm", "criterion": "cross_entropy", "tokens-per-sample": 32},
        **{"decoder-layers": "[(32, 3)] * 2 + [(64, 1)]", "decoder-attention": "False"},
        **{"decoder-embed-dim": 32},
    },
}


@pytest.fixture(scope="module")
def data_of(
    cases: dict[str, Any], mlm_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder for every task; to be translated is English, into English."""
    pairs = tmp_path_factory.mktemp("pairs")
    for language in "ab":
        shutil.copyfile(mlm_data / "dict.txt", pairs / f"dict.{language}.txt")
        for split in ("train", "valid"):
            for suffix in ("idx", "bin"):
                shutil.copyfile(
                    mlm_data / f"{split}.{suffix}", pairs / f"{split}.a-b.{language}.{suffix}"
                )
    known = {"sentence_prediction": cases["single"].data, "translation": pairs}
    return {kind: known.get(kind, mlm_data) for kind in KINDS}


def start(folder: Path, data_of: dict[str, Path], plugin: bool) -> subprocess.Popen[str]:
    """Train all kinds, one after the other."""
    runs = []
    for kind, given in KINDS.items():
        chosen = {"task": kind, **TRAINING, **given, "save-dir": folder / kind}
        chosen |= {"user-dir": PLUGIN} if plugin else {}
        runs.append([str(data_of[kind]), *command_line(chosen)])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    process.stdin.write(json.dumps(runs))
    process.stdin.close()
    return process


@pytest.mark.slow
def test_stock_training_is_the_same_with_the_plugin(
    data_of: dict[str, Path], tmp_path: Path
) -> None:
    folders = {plugin: tmp_path / str(plugin) for plugin in (False, True)}
    for folder in folders.values():
        folder.mkdir()
    running = {plugin: start(folder, data_of, plugin) for plugin, folder in folders.items()}
    for plugin, process in running.items():
        said = process.stdout.read()
        assert process.wait() == 0, said[-4000:]
        assert said.strip().endswith(f"plugin: {plugin}")
    for kind in KINDS:
        paths = [folder / kind / "checkpoint_last.pt" for folder in folders.values()]
        assert_same_training(*paths)
        without, with_plugin = map(load, paths)
        for key in ("train_iterator", "val_loss", "best"):
            assert without["extra_state"].get(key) == with_plugin["extra_state"].get(key), kind
        assert without["optimizer_history"][-1]["num_updates"] == 4
