"""The recipes for many machines: shards are made, commands fit fairseq, ranks get lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary, data_utils
from fairseq.distributed import utils as distributed_utils
from support.places import ROOT
from support.quick_train import Run, free_port, mlm_options, rank_options, start, wait_until
from support.recipes import make_stand_in, parsed, run_script
from support.tools import json_log

SCALE = ROOT / "examples" / "scale"
SHARDS = 3


def run(name: str, *arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    return run_script(SCALE / name, *arguments, **settings)


def documents(text: str) -> list[str]:
    return [document for document in re.split(r"\n\s*\n", text.strip()) if document]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python manual's topics, a document each."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("scale")
    texts = []
    for name in sorted(topics)[:24]:
        prose = re.sub(r"\s+", " ", topics[name])[:6000]
        texts.append("\n".join(line[:250] for line in re.split(r"(?<=\.) ", prose) if line))
    (folder / "corpus.txt").write_text("\n\n".join(texts[:-2]) + "\n", encoding="utf-8")
    (folder / "valid.txt").write_text("\n\n".join(texts[-2:]) + "\n", encoding="utf-8")
    run("split_corpus.sh", folder / "corpus.txt", folder / "texts", SHARDS)
    return folder


@pytest.fixture(scope="module")
def shards(corpus: Path) -> Path:
    """As two jobs make them, after one has made the first and its vocabulary."""
    texts, out = corpus / "texts", corpus / "shards"
    first = corpus / "first"
    first.mkdir()
    (first / "000.txt").symlink_to(texts / "000.txt")
    run("prepare_shards.sh", first, corpus / "valid.txt", out, 400)
    for job in (0, 1):
        array = {"SLURM_ARRAY_TASK_ID": job, "SLURM_ARRAY_TASK_COUNT": 2}
        run("prepare_shards.sh", texts, corpus / "valid.txt", out, out / "000", **array)
    return out


def test_the_corpus_is_dealt_out_by_documents(corpus: Path) -> None:
    dealt = [documents(path.read_text()) for path in sorted((corpus / "texts").glob("*"))]
    assert len(dealt) == SHARDS
    whole = documents((corpus / "corpus.txt").read_text())
    assert [whole[i::SHARDS] for i in range(SHARDS)] == dealt


@pytest.mark.parametrize(
    ("shards", "message"),
    [(1000, "has documents for 22 shards only, not for 1000"), (0, "SHARDS is 0"), ("x", "is x")],
)
def test_what_cannot_be_dealt_out_leaves_nothing(
    shards: Any, message: str, corpus: Path, tmp_path: Path
) -> None:
    done = run("split_corpus.sh", corpus / "corpus.txt", tmp_path / "out", shards, check=False)
    assert done.returncode != 0
    assert message in done.stdout.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_shards_share_a_vocabulary_and_hold_all_of_the_text(shards: Path, corpus: Path) -> None:
    folders = sorted(shards.iterdir())
    assert [folder.name for folder in folders] == ["000", "001", "002"]
    dictionaries = {(folder / "dict.txt").read_text() for folder in folders}
    assert len(dictionaries) == 1
    dictionary = Dictionary.load(str(folders[0] / "dict.txt"))
    for folder in folders:
        lines = data_utils.load_indexed_dataset(str(folder / "train"))
        text = (corpus / "texts" / f"{folder.name}.txt").read_text()
        assert len(lines) == len(text.rstrip("\n").split("\n")) + (text.endswith("\n\n"))
        decoded = dictionary.string(lines[0]).replace(" ", "").replace("\u2581", " ").strip()
        assert decoded == re.sub(r"\s+", " ", text.split("\n")[0]).strip()


@pytest.mark.slow
def test_a_second_run_makes_what_is_missing_and_nothing_else(shards: Path, corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*") if path.is_file()}
    command = ("prepare_shards.sh", corpus / "texts", corpus / "valid.txt", shards)
    assert run(*command, shards / "000").stdout == ""
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_array_does_not_learn_many_vocabularies(corpus: Path, tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_TASK_ID": 1, "SLURM_ARRAY_TASK_COUNT": 2}
    command = ("prepare_shards.sh", corpus / "texts", corpus / "valid.txt", tmp_path / "out", 400)
    done = run(*command, check=False, **array)
    assert done.returncode != 0
    assert "make that alone, before the array" in done.stdout


# The commands on many nodes, with stand-ins for Slurm and for GPUs.


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """fairseq-train and torchrun print their arguments; srun runs, scontrol takes notes."""
    folder = make_stand_in(tmp_path)
    (folder / "torchrun").write_text((folder / "fairseq-train").read_text())
    (folder / "srun").write_text('#!/bin/bash\nshift\n"$@" || exit\nexit "${LOST_RANK:-0}"\n')
    (folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {folder}/scontrol.log\n')
    for name in ("torchrun", "srun", "scontrol"):
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def named_shards(tmp_path: Path) -> Path:
    """As much of shards as the scripts look at."""
    for i in range(SHARDS):
        (tmp_path / "shards" / f"00{i}").mkdir(parents=True)
        (tmp_path / "shards" / f"00{i}" / "dict.txt").touch()
    return tmp_path / "shards"


SLURM = {
    **{"SLURM_SUBMIT_DIR": ROOT, "SLURM_NNODES": 8, "SLURM_GPUS_ON_NODE": 8, "BATCH": 4},
    **{"SLURM_JOB_ID": 4711, "SLURM_JOB_NODELIST": "node[0-7]", "SLURM_NTASKS_PER_NODE": 1},
}


def test_slurm_starts_one_rank_a_gpu_on_all_shards(
    named_shards: Path, tools: Path, tmp_path: Path
) -> None:
    output = run(
        "train.slurm", "from_scratch_base", named_shards, tmp_path / "save", tools=tools, **SLURM
    ).stdout
    command = json.loads(output.splitlines()[-1])
    assert command[0] == ":".join(f"{named_shards}/00{i}" for i in range(SHARDS))
    cfg = parsed(command)
    assert cfg.distributed_training.distributed_world_size == 64
    assert cfg.optimization.update_freq == [1]
    assert cfg.checkpoint.save_interval_updates == 500
    assert not (tools / "scontrol.log").exists()  # it ended well

    # What fairseq makes of it on the fourth node.
    environment = {key: str(value) for key, value in SLURM.items()} | {"SLURM_NODEID": "3"}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(
            distributed_utils.subprocess, "check_output", return_value=b"node0\nnode1"
        ),
        mock.patch.object(torch.cuda, "device_count", return_value=8),
    ):
        distributed_utils.infer_init_method(cfg.distributed_training)
    assert cfg.distributed_training.distributed_init_method == "tcp://node0:24711"
    assert cfg.distributed_training.distributed_rank == 24
    assert cfg.distributed_training.distributed_num_procs == 8


def test_a_job_that_loses_a_rank_queues_itself_again(
    named_shards: Path, tools: Path, tmp_path: Path
) -> None:
    command = ("train.slurm", "from_scratch_base", named_shards, tmp_path / "save")
    run(*command, tools=tools, **SLURM, LOST_RANK=1)
    assert (tools / "scontrol.log").read_text() == "requeue 4711\n"
    again = {"SLURM_RESTART_COUNT": 5, "RESTARTS": 5}
    done = run(*command, tools=tools, check=False, **SLURM, **again, LOST_RANK=1)
    assert done.returncode != 0
    assert "queued again often enough" in done.stdout
    assert (tools / "scontrol.log").read_text() == "requeue 4711\n"


def test_torchrun_starts_the_recipe_on_every_gpu(
    named_shards: Path, tools: Path, tmp_path: Path
) -> None:
    restore = tmp_path / "model.pt"
    restore.touch()
    settings = {"NODES": 2, "HEAD": "10.0.0.1", "GPUS": 4}
    command = ("train_torchrun.sh", "continual_base", named_shards, tmp_path / "save", restore)
    output = run(*command, "--lr", "1e-5", tools=tools, **settings).stdout
    arguments = json.loads(output.splitlines()[-1])
    start = arguments.index("--no-python")
    assert arguments[:4] == ["--nnodes", "2", "--nproc-per-node", "4"]
    assert "10.0.0.1:29400" in arguments
    # As torchrun would go on.
    recipe = arguments[start + 2 :]
    output = run_script(Path(recipe[0]), *recipe[1:], tools=tools, GPUS=8).stdout
    cfg = parsed(json.loads(output.splitlines()[-1]))
    assert cfg.distributed_training.distributed_world_size == 8
    assert cfg.optimization.lr == [1e-5]
    assert cfg.checkpoint.finetune_from_model == str(restore)
    ranks = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400", "WORLD_SIZE": "8", "RANK": "5"}
    with (
        mock.patch.dict(os.environ, ranks),
        mock.patch.object(torch.cuda, "device_count", return_value=4),
        mock.patch.object(torch.cuda, "set_device"),
    ):
        distributed_utils.infer_init_method(cfg.distributed_training)
    assert cfg.distributed_training.distributed_init_method == "env://"
    assert cfg.distributed_training.distributed_rank == 5
    assert cfg.distributed_training.device_id == 1
    assert cfg.distributed_training.distributed_no_spawn


@pytest.mark.parametrize("script", ["train.slurm", "train_torchrun.sh"])
def test_wrong_usage_is_named(script: str, named_shards: Path, tools: Path, tmp_path: Path) -> None:
    settings = {**SLURM, "GPUS": 8, "tools": tools, "check": False}
    done = run(script, "from_scratch_small", named_shards, tmp_path / "save", **settings)
    assert done.returncode != 0
    assert "from_scratch_small: choose from_scratch_base" in done.stdout
    done = run(script, "from_scratch_base", tmp_path, tmp_path / "save", **settings)
    assert done.returncode != 0
    assert f"{tmp_path} holds no shards: make them with prepare_shards.sh" in done.stdout


@pytest.mark.parametrize(
    "script", ["split_corpus.sh", "prepare_shards.sh", "train.slurm", "train_torchrun.sh"]
)
def test_without_arguments_a_script_explains_itself(script: str) -> None:
    done = run(script, check=False, **SLURM)
    assert done.returncode == 2
    assert script in done.stdout


# A rank lost in the middle.


def start_ranks(data: str, save_dir: Path, log: Path) -> list[Run]:
    port = free_port()
    options = {
        **{"update_freq": 2, "max_update": 32, "total_num_update": 32, "save_interval_updates": 4},
        **{"keep_interval_updates": 2, "lr_scheduler": "polynomial_decay", "warmup_updates": 5},
        **{"alum_start_update": 10, "alum_warmup_updates": 20, "batch_size": 4},
    }
    return [
        start(
            mlm_options(data, save_dir, **options, **rank_options(rank, port)),
            log.with_name(f"{log.name}-{rank}"),
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_a_run_that_loses_a_rank_ends_as_if_it_had_not(shards: Path, tmp_path: Path) -> None:
    data = ":".join(map(str, sorted(shards.iterdir())))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for rank in start_ranks(data, whole, tmp_path / "whole.log"):
        rank.wait()
    for lost in (1, 0):  # one rank, then the other, which is the one that saves
        ranks = start_ranks(data, broken, tmp_path / f"lost-{lost}")
        known = set(broken.glob("checkpoint_*_*.pt"))
        wait_until(lambda known=known: set(broken.glob("checkpoint_*_*.pt")) - known, ranks[0])
        assert all(rank.alive for rank in ranks)
        ranks[lost].kill()
        survivor = ranks[1 - lost]
        survivor.wait(check=False)  # it ends as well, by itself
        assert survivor.process.exitcode not in (0, None)
    for rank in start_ranks(data, broken, tmp_path / "last"):
        rank.wait()
    states = [
        checkpoint_utils.load_checkpoint_to_cpu(str(folder / "checkpoint_last.pt"))
        for folder in (whole, broken)
    ]
    assert states[0]["optimizer_history"][-1] == states[1]["optimizer_history"][-1]
    assert len(states[1]["optimizer_history"]) == 3  # it did go on, twice
    for name, weight in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], weight), name
    last = json_log((tmp_path / "last-0").read_text(), "train_inner")
    expected = json_log((tmp_path / "whole.log-0").read_text(), "train_inner")[-len(last) :]
    for name in ("num_updates", "loss", "adv_loss", "gnorm"):
        assert [line.get(name) for line in last] == [line.get(name) for line in expected]
    read = re.findall(r"from: \S+/(00\d)/train", (tmp_path / "whole.log-0").read_text())
    assert list(dict.fromkeys(read))[:2] == ["000", "001"]


# The page of costs.


def cost(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCALE / "cost.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_page_is_what_the_script_makes() -> None:
    assert cost("--markdown").stdout == (ROOT / "docs/scale_cost.md").read_text()


def rows_of(output: str) -> dict[tuple[str, str], list[float]]:
    rows = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if cells[0].startswith(("continual", "from scratch")):
            numbers = [re.sub(r"[,%]| on.*", "", cell) for cell in cells[2:]]
            rows[cells[0], cells[1]] = [float(number) for number in numbers]
    return rows


def test_the_formulas_by_hand() -> None:
    rows = rows_of(cost("--tokens-per-second", "H100:base=100000", "--price", "H100=2").stdout)
    # 100,000 updates of 256 x 512 tokens at 100,000 tokens a second.
    hours = 100_000 * 256 * 512 / 100_000 / 3600
    tokens, found, plain, money = rows["continual, base", "H100"]
    assert (tokens, found) == (100_000, round(hours))
    assert plain == round(hours * 3 / 8)
    assert money == round(2 * hours)
    # From scratch: 500,000 plain updates at 3/8 of the time, 500,000 with the adversary.
    assert rows["from scratch, base", "H100"][1] == round(5 * hours * (1 + 3 / 8))
    # 64 cards: 4 sequences each, and 2 x 63/64 times 250 MB over 50 GB/s.
    sequences, computing, sending, share, duration, _ = rows["continual, base", "64"]
    assert sequences == 4
    assert computing == round(1000 * 4 * 512 / 100_000)
    assert sending == pytest.approx(1000 * 2 * 63 / 64 * 250e6 / 50e9, abs=0.05)
    assert share == round(100 * sending / (sending + 20.48))
    assert duration == pytest.approx(100_000 * (0.02048 + sending / 1000) / 3600, abs=0.1)
    # Eight of them are one node, and are not held up by the network.
    assert rows["continual, base", "8"][2] == pytest.approx(
        1000 * 2 * 7 / 8 * 250e6 / 450e9, abs=0.05
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--price", "V100=1"), "--price V100=1: the cards are A100, H100, H200"),
        (("--price", "H100"), "'H100' is not of the form NAME=NUMBER"),
        (("--tokens-per-second", "H100:tiny=5"), "such as H100:base=60000"),
        (("--utilisation", "0"), "--utilisation is 0.0: it must be above 0"),
    ],
)
def test_wrong_assumptions_are_named(arguments: tuple[str, ...], message: str) -> None:
    done = cost(*arguments)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("cost.py: error: ")
    assert message in line
