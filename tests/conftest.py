"""Shared fixtures: a small RoBERTa in memory, real English text on disk, fairseq's commands."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.roberta import RobertaModel
from torch.utils._python_dispatch import TorchDispatchMode

import alum_fairseq

PLUGIN = Path(alum_fairseq.__file__).parent
ROOT = Path(__file__).parent.parent

# A model small enough that an update takes milliseconds, as options of fairseq-train.
SMALL_MODEL = {
    "arch": "roberta",
    "encoder-layers": 2,
    "encoder-embed-dim": 32,
    "encoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 4,
    "max-positions": 66,
    "tokens-per-sample": 64,
}
SMALL_RUN = {
    "user-dir": PLUGIN,
    "task": "alum_masked_lm",
    "criterion": "alum_mlm",
    **SMALL_MODEL,
    "sample-break-mode": "none",
    "batch-size": 8,
    "optimizer": "adam",
    "lr": 1e-3,
    "max-update": 4,
    "log-format": "json",
    "log-interval": 1,
    "num-workers": 0,
    "cpu": True,
    "no-epoch-checkpoints": True,
}


class Counting(TorchDispatchMode):
    """Counts what is drawn of the generator inside."""

    drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drawn += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def make_dictionary(words: int = 40) -> Dictionary:
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol(f"w{i}")
    dictionary.add_symbol("<mask>")
    return dictionary


def make_task(dictionary: Dictionary | None = None, **attributes: Any) -> SimpleNamespace:
    """As much of a fairseq task as a criterion and a model look at."""
    dictionary = dictionary or make_dictionary()
    attributes.setdefault("cfg", Namespace(_name="masked_lm"))
    return SimpleNamespace(
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        max_positions=lambda: 64,
        **attributes,
    )


def make_model(task: SimpleNamespace | None = None, **options: Any) -> RobertaModel:
    """A small RoBERTa, built by fairseq itself; options are those of the architecture."""
    args = Namespace(
        **{
            "encoder_layers": 2,
            "encoder_embed_dim": 16,
            "encoder_ffn_embed_dim": 32,
            "encoder_attention_heads": 2,
            "max_positions": 64,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            **options,
        }
    )
    model = RobertaModel.build_model(args, task or make_task())
    # fairseq's initialisation is so small that an untrained model's predictions hardly move.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def make_sample(
    dictionary: Dictionary, lengths: tuple[int, ...] = (9, 6, 4), masked: int = 2
) -> dict[str, Any]:
    """A batch for masked language modelling, with padding, as fairseq's task makes it."""
    tokens = torch.full((len(lengths), max(lengths)), dictionary.pad())
    target = tokens.clone()
    for row, length in enumerate(lengths):
        words = torch.randint(dictionary.nspecial, len(dictionary) - 1, (length,))
        words[0], words[-1] = dictionary.bos(), dictionary.eos()
        tokens[row, :length] = words
        for position in range(1, 1 + masked):
            target[row, position] = words[position]
            tokens[row, position] = dictionary.index("<mask>")
    return {
        "id": torch.arange(len(lengths)),
        "net_input": {
            "src_tokens": tokens,
            "src_lengths": torch.tensor(lengths),
        },
        "target": target,
        "nsentences": len(lengths),
        "ntokens": sum(lengths),
    }


def command_line(options: dict[str, Any]) -> list[str]:
    """``{"lr": 1, "cpu": True}`` as ``--lr 1 --cpu``."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words


# Programs of fairseq that need no new Python: they are forked, which saves 6 seconds each time.
FORKED = {"fairseq-hydra-train": "hydra_train", "fairseq-preprocess": "preprocess"}


def run_tool(
    *command: Any, cwd: Path | None = None, check: bool = True, python: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's commands; on failure show what it said.

    ``python=True`` starts a new Python for those in ``FORKED``, too.
    """
    name, *arguments = map(str, command)
    if name in FORKED and not python:
        return run_forked(FORKED[name], arguments, cwd, check)
    done = subprocess.run(
        [str(Path(sys.executable).with_name(name)), *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}", pytrace=False)
    return done


def run_forked(
    program: str, arguments: list[str], cwd: Path | None, check: bool
) -> subprocess.CompletedProcess[str]:
    """Run a program of fairseq in a process that is forked from one that has imported it."""
    from support import quick_train

    with tempfile.TemporaryDirectory() as folder:
        run = quick_train.start(arguments, Path(folder) / "log", cwd=cwd, program=program)
        output = run.wait(check, timeout=900)
    return subprocess.CompletedProcess([program, *arguments], run.process.exitcode, output)


def json_log(output: str, kind: str) -> list[dict[str, Any]]:
    """The lines that ``--log-format json`` wrote for ``train_inner``, ``train`` or ``valid``."""
    found = re.findall(rf"\| INFO \| {kind} \| (\{{.*\}})$", output, flags=re.MULTILINE)
    return [json.loads(line) for line in found]


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """A folder that all workers of pytest-xdist share: whichever comes first makes what is in it.

    It is read by tests that run at the same time, so none may change it, not even for a moment.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of the workers' own folders
    folder, done = shared / f"shared-{name}", shared / f"shared-{name}.done"
    with open(shared / f"shared-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


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


Train = Callable[..., subprocess.CompletedProcess[str]]


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


def in_two_processes(train: Callable[..., Any]) -> list[Any]:
    """Call what trains once for each of two ranks, with the options that make them one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def worker(rank: int) -> Any:
        return train(
            distributed_backend="gloo",
            ddp_backend="legacy_ddp",
            distributed_init_method=f"tcp://127.0.0.1:{port}",
            distributed_no_spawn=True,
            distributed_world_size=2,
            nprocs_per_node=2,
            distributed_rank=rank,
        )

    with ThreadPoolExecutor() as pool:
        return list(pool.map(worker, (0, 1)))


# Untrained checkpoints. The module that makes them imports this one.


@pytest.fixture(scope="session")
def cases(mlm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For every kind of task: a table, the data that alum-prepare made of it, a checkpoint."""
    from support.untrained import KINDS, make_case

    def make(folder: Path) -> None:
        made = {kind: make_case(kind, mlm_data, folder) for kind in KINDS}
        (folder / "cases.pickle").write_bytes(pickle.dumps(made))

    folder = made_once(tmp_path_factory, "untrained", make)
    return pickle.loads((folder / "cases.pickle").read_bytes())


@pytest.fixture(params=("single", "pair", "regression", "choices"))
def case(request: pytest.FixtureRequest, cases: dict[str, Any]) -> Any:
    return cases[request.param]
