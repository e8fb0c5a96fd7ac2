"""``train.sh``: what alum-prepare writes beside the data trains as it stands, from any folder."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.converted import save_model

from alum_fairseq.prepare.command import main as prepare

WORDS = [*"abcdefghij", "good", "bad", "film"]


def write_table(path: Path, rows: int = 40) -> Path:
    lines = [f"a {['bad', 'good'][i % 2]} film\tb c\t{i % 2}\n" for i in range(rows)]
    path.write_text("one\ttwo\tlabel\n" + "".join(lines))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name the shell must not take apart, with a model and a table."""
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    save_model(folder / "base", WORDS)
    write_table(folder / "train.tsv")
    write_table(folder / "dev.tsv", 5)
    return folder


def call(folder: Path, *more: Any, columns: tuple[str, ...] = ("one",)) -> int:
    options = ["--train", folder / "train.tsv", "--columns", *columns, "--label", "label"]
    options += ["--vocabulary", folder / "base", "--output", folder / "data", "--workers", 1]
    return prepare([str(word) for word in (*options, *more)])


def run(script: Path, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    # Neither the environment's programs nor a number of threads is chosen by the user.
    environment["PATH"] = os.defpath
    if not variables:
        environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        ["bash", str(script), *words],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_it_trains_as_it_stands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    relative = [
        "--train",
        "train.tsv",
        "--valid",
        "dev.tsv",
        "--columns",
        "one",
        "--label",
        "label",
    ]
    assert prepare([*relative, "--vocabulary", "base", "--output", "data"]) == 0
    script = folder / "data/train.sh"
    said = capsys.readouterr().out
    for word in ("fairseq-train", "--arch alum_roberta", "--alum-layer-norm-eps 1e-12"):
        assert word in said
    for method, alpha in {"alum": None, "plain": 0.0}.items():
        done = run(script, *[method] * (method != "alum"), cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "train.sh: threads: " in done.stdout
        saved = {path.name for path in (folder / "data" / method).iterdir()}
        assert saved == {"checkpoint_best.pt", "checkpoint_last.pt"}
        state = torch.load(folder / "data" / method / "checkpoint_best.pt")
        cfg = state["cfg"]
        assert cfg["criterion"]["_name"] == "alum_sentence_prediction"
        assert cfg["criterion"]["alum_alpha"] == alpha
        assert vars(cfg["model"])["alum_layer_norm_eps"] == 1e-12
        assert vars(cfg["model"])["pooler_dropout"] == 0.2
        assert cfg["common"]["cpu"] is True
        assert cfg["common"]["fp16"] is False
        assert state["task_state"]["classes"] == ["0", "1"]
        last = torch.load(folder / "data" / method / "checkpoint_last.pt")
        assert last["optimizer_history"][-1]["num_updates"] == 20  # of 32 of 40, for 10 epochs
        assert ("adv_loss" in done.stdout) == (method == "alum")
        # Two updates an epoch: fairseq's interval of 100 would say nothing within it.
        assert "| INFO | train_inner |" in done.stdout
    # Options after the method win; and a run that is over is not made again.
    done = run(script, "alum", "--max-epoch", "3", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "nothing to do" in done.stdout
    assert "train.sh: threads: 1 " in done.stdout
    done = run(script, "Plain", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "train.sh: the first word is Plain: it must be alum, plain or an option\n"


def test_moved_data_are_missed(folder: Path, tmp_path: Path) -> None:
    assert call(folder) == 0
    moved = (folder / "data").rename(folder / "moved")
    done = run(moved / "train.sh", cwd=tmp_path)
    assert done.returncode == 2
    said = "holds no alum-prepare.json: if the data were moved, run alum-prepare again\n"
    assert done.stdout == f"train.sh: {folder / 'data'} {said}"
    assert not (folder / "data").exists()


def options_of(folder: Path) -> list[str]:
    """What the script gives to fairseq-train, on a machine with a GPU."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "python").write_text("#!/bin/sh\nexit 0\n")
    (programs / "fairseq-train").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    script = (folder / "data/train.sh").read_text()
    [line] = [line for line in script.splitlines() if line.startswith("PATH=")]
    (folder / "here.sh").write_text(script.replace(line, 'PATH="$PROGRAMS:$PATH"'))
    done = run(folder / "here.sh", cwd=folder, PROGRAMS=str(programs))
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def value(options: list[str], name: str) -> str | None:
    return options[options.index(name) + 1] if name in options else None


def test_a_gpu_computes_in_half_precision(folder: Path) -> None:
    assert call(folder, "--valid", folder / "dev.tsv") == 0
    options = options_of(folder)
    assert "--fp16" in options
    assert "--cpu" not in options
    assert options[0] == str(folder / "data")
    assert value(options, "--save-dir") == str(folder / "data/alum")
    assert value(options, "--finetune-from-model") == str(folder / "base/model.pt")


@pytest.mark.parametrize(
    ("words", "batch", "passes"), [(1, 32, 1), (3, 16, 2), (9, 8, 4), (38, 2, 16), (99, 2, 16)]
)
def test_an_update_has_its_sequences_whatever_their_length(
    words: int, batch: int, passes: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that reads 40 tokens, with room for 100 in a pass."""
    monkeypatch.setattr("alum_fairseq.prepare.train_script._TOKENS", 100)
    text = " ".join("a" * words)
    rows = "".join(f"{text}\t{i % 2}\n" for i in range(64))
    (folder / "train.tsv").write_text("one\tlabel\n" + rows)
    assert call(folder) == 0
    options = options_of(folder)
    assert value(options, "--batch-size") == str(batch)
    assert value(options, "--update-freq") == str(passes)
    assert value(options, "--max-tokens") == "100"
    done = run(folder / "data/train.sh", "plain", "--max-epoch", "1", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    state = torch.load(folder / "data/plain/checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert state["extra_state"]["train_iterator"]["epoch"] == 2


def test_a_text_longer_than_a_pass_is_a_pass_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alum_fairseq.prepare.train_script._TOKENS", 30)
    (folder / "train.tsv").write_text("one\tlabel\n" + f"{' '.join('a' * 38)}\t0\na\t1\n" * 16)
    assert call(folder) == 0
    done = run(folder / "data/train.sh", "plain", "--max-epoch", "1", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert value(options_of(folder), "--batch-size") == "1"


@pytest.mark.parametrize("bert", [False, True])
def test_pairs_have_the_separator_of_the_model(bert: bool, folder: Path) -> None:
    (folder / "base").rename(folder / "other")
    save_model(folder / "base", WORDS, **({"separator_token": None} if bert else {}))
    assert call(folder, columns=("one", "two")) == 0
    assert value(options_of(folder), "--separator-token") == (None if bert else "2")


def test_numbers_and_choices(folder: Path) -> None:
    assert call(folder, "--regression", "--valid", folder / "dev.tsv") == 0
    options = options_of(folder)
    assert "--regression-target" in options
    assert "--report-pearson-and-spearman" in options
    assert value(options, "--best-checkpoint-metric") == "pearson_and_spearman"
    assert value(options, "--num-classes") == "1"
    (folder / "data").rename(folder / "numbers")
    assert call(folder, "--choices", "two", "one+two") == 0
    options = options_of(folder)
    assert value(options, "--task") == value(options, "--criterion") == "alum_sentence_ranking"
    assert value(options, "--separator-token") == "2"


def test_one_example_has_no_correlation(folder: Path) -> None:
    write_table(folder / "dev.tsv", 1)
    assert call(folder, "--regression", "--valid", folder / "dev.tsv") == 0
    options = options_of(folder)
    assert "--best-checkpoint-metric" not in options
    assert "--disable-validation" not in options


def test_without_validation_set(folder: Path, capsys: Any) -> None:
    assert call(folder) == 0
    assert "no validation set (--valid)" in capsys.readouterr().err
    options = options_of(folder)
    assert "--disable-validation" in options
    assert "--best-checkpoint-metric" not in options


def test_without_model(folder: Path, capsys: Any) -> None:
    (folder / "base/model.pt").rename(folder / "mine.pt")
    assert call(folder) == 0
    said = capsys.readouterr()
    assert not (folder / "data/train.sh").exists()
    assert f"{folder}/base has no model.pt; give --model, the checkpoint to start from" in said.err
    assert "--num-classes 2 --init-token 0 --max-positions 512" in said.out
    (folder / "data").rename(folder / "without")
    assert call(folder, "--model", folder / "mine.pt") == 0
    assert value(options_of(folder), "--finetune-from-model") == str(folder / "mine.pt")


def test_the_models_positions(folder: Path, capsys: Any) -> None:
    """Texts are cut to the model's positions, and the model keeps its own."""
    assert call(folder, "--max-positions", 41) == 2
    assert f"--max-positions is 41: {folder}/base/model.pt has 40 positions" in (
        capsys.readouterr().err
    )
    for given, cut in {None: 40, 9: 9}.items():
        more = () if given is None else ("--max-positions", given)
        assert call(folder, *more) == 0
        assert json.loads((folder / "data/alum-prepare.json").read_text())["max_positions"] == cut
        assert value(options_of(folder), "--max-positions") == "40"
        (folder / "data").rename(folder / f"cut-{cut}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dictionary", "has a vocabulary of 18 symbols, {folder}/base/dict.txt makes 19: give"),
        ("model", "is no checkpoint, or was cut short"),
        ("arch", "is a model of the architecture bart_base, not a RoBERTa"),
    ],
)
def test_a_model_that_does_not_fit(change: str, message: str, folder: Path, capsys: Any) -> None:
    path = folder / "base/model.pt"
    if change == "dictionary":
        with (folder / "base/dict.txt").open("a") as file:
            file.write("more 1\n")
    elif change == "model":
        path.write_text("nothing")
    else:
        state = torch.load(path, weights_only=False)
        state["args"].arch = "bart_base"
        torch.save(state, path)
    assert call(folder) == 2
    assert f"{path} {message.format(folder=folder)}" in capsys.readouterr().err
    assert not (folder / "data").exists()
