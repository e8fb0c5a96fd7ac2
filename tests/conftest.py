"""Fixtures: real English text on disk, fairseq-train, models that were trained or not."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.options import SMALL_MODEL, SMALL_RUN, command_line
from support.quick_train import run_forked
from support.shared import made_once
from support.tools import Train, run_tool
from support.untrained import KINDS, make_case

# Else the commands choose a number by the machine's load, and say so.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@pytest.fixture(scope="session")
def mlm_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python manual's topics as a binarised corpus: real English, on every machine."""
    from pydoc_data.topics import topics

    def make(folder: Path) -> None:
        lines = []
        for name in sorted(topics):
            words = re.findall(r"[a-z]+|[.,;:()]", topics[name].lower())
            lines += [" ".join(words[i : i + 60]) for i in range(0, len(words), 60)] + [""]
        cut = len(lines) * 9 // 10
        (folder / "train").write_text("\n".join(lines[:cut]) + "\n")
        (folder / "valid").write_text("\n".join(lines[cut:][:120]) + "\n")
        run_tool(
            *("fairseq-preprocess", "--only-source", "--nwordssrc", 800, "--workers", 1),
            *("--trainpref", folder / "train", "--validpref", folder / "valid"),
            *("--destdir", folder / "bin"),
        )

    return made_once(tmp_path_factory, "mlm", make) / "bin"


@pytest.fixture(scope="session")
def few_data(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three batches."""
    folder = tmp_path_factory.mktemp("few")
    lines = (mlm_data.parent / "valid").read_text().splitlines()
    (folder / "text").write_text("\n".join(lines[:12]) + "\n")
    run_tool(
        *("fairseq-preprocess", "--only-source", "--srcdict", mlm_data / "dict.txt"),
        *("--trainpref", folder / "text", "--validpref", folder / "text"),
        *("--destdir", folder / "bin"),
    )
    return folder / "bin"


@pytest.fixture
def train(mlm_data: Path, tmp_path: Path) -> Train:
    """Run ``fairseq-train`` in a process and a folder of its own.

    ``python=True`` starts it in a new Python, which takes 6 seconds longer: where it matters what
    is imported, and what is said meanwhile. Without ``--user-dir`` it always does: what is forked
    has imported the plugin.
    """

    def run(
        save_dir: str, check: bool = True, data: Any = mlm_data, python: bool = False, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        options = {
            **SMALL_RUN,
            "max-valid-steps": 2,
            "save-dir": save_dir,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        command = [str(data), *command_line(options)]
        if python or options["user-dir"] is None:
            return run_tool("fairseq-train", *command, cwd=tmp_path, check=check)
        return run_forked("train", command, tmp_path, check)

    return run


@pytest.fixture(scope="session")
def trained_model(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model that stock fairseq trained until it knows some English."""
    options = {
        "task": "masked_lm",
        "criterion": "masked_lm",
        **SMALL_MODEL,
        "encoder-embed-dim": 64,
        "encoder-ffn-embed-dim": 128,
        "sample-break-mode": "none",
        "batch-size": 16,
        "optimizer": "adam",
        "lr": 3e-3,
        "lr-scheduler": "polynomial_decay",
        "warmup-updates": 50,
        "total-num-update": 600,
        "max-update": 600,
        "dropout": 0.1,
        "disable-validation": True,
        "num-workers": 0,
        "cpu": True,
        "no-epoch-checkpoints": True,
    }

    def make(folder: Path) -> None:
        command = [str(mlm_data), *command_line({**options, "save-dir": folder})]
        run_forked("train", command, cwd=None, check=True)

    return made_once(tmp_path_factory, "trained", make) / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def cases(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For every kind of task: a table, the data that alum-prepare made of it, a checkpoint."""

    def make(folder: Path) -> None:
        made = {kind: make_case(kind, mlm_data, folder) for kind in KINDS}
        (folder / "cases.pickle").write_bytes(pickle.dumps(made))

    folder = made_once(tmp_path_factory, "untrained", make)
    return pickle.loads((folder / "cases.pickle").read_bytes())


@pytest.fixture(params=("single", "pair", "regression", "choices"))
def case(request: pytest.FixtureRequest, cases: dict[str, Any]) -> Any:
    return cases[request.param]
