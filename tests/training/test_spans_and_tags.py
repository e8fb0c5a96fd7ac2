"""Questions and tags all the way: from the published files to answers that are the metric's."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.options import command_line
from support.places import PLUGIN
from support.quick_train import start
from support.resuming import Killed, assert_equal, comparable, last_state
from support.token_data import write_conll, write_squad, write_vocabulary
from support.tools import json_log

from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare

# What each learns to in 6 epochs, at the least: in percent.
LEARNT = {"tags": 70, "spans": 20, "spans or none": 20}
EVALUATED = re.compile(r"(\w+) (-?[\d.]+)")


def make_data(kind: str, folder: Path, count: int = 200) -> tuple[Path, Path, str]:
    """The folder of the data, the published development part, and the name of the task."""
    if kind == "tags":
        train, valid = (
            write_conll(folder / f"{name}.conll", count, seed)
            for name, count, seed in (("train", count, 1), ("valid", 40, 2))
        )
    else:
        train, valid = (
            write_squad(folder / f"{name}.json", count, seed, kind == "spans or none")
            for name, count, seed in (("train", count, 1), ("valid", 40, 2))
        )
    command = ["--train", train, "--valid", valid, "--vocabulary", write_vocabulary(folder / "v")]
    command += ["--output", folder / "data", "--max-positions", 20 if kind == "tags" else 16]
    command += [] if kind == "tags" else ["--doc-stride", 4, "--max-question", 4, "--max-answer", 3]
    assert prepare([*map(str, command)]) == 0
    task = "alum_sequence_tagging" if kind == "tags" else "alum_span_prediction"
    return folder / "data", valid, task


def options_of(task: str, save: Path, **more: Any) -> dict[str, Any]:
    return {
        **{"user-dir": PLUGIN, "task": task, "criterion": task, "arch": "roberta", "cpu": True},
        **{"encoder-layers": 1, "encoder-embed-dim": 32, "encoder-ffn-embed-dim": 32},
        **{"encoder-attention-heads": 4, "optimizer": "adam", "lr": 0.01, "batch-size": 16},
        **{"max-epoch": 6, "log-format": "json", "num-workers": 0, "save-dir": save},
        **{"no-epoch-checkpoints": True, "required-batch-size-multiple": 1, "init-token": 0},
        **{"best-checkpoint-metric": "f1", "maximize-best-checkpoint-metric": True},
        **{"separator-token": 2, "max-positions": 20 if "tagging" in task else 16},
        **{"num-classes": 5 if "tagging" in task else None, "alum-validate": True},
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def train(data: Path, log: Path, options: dict[str, Any], check: bool = True) -> str:
    return start([str(data), *command_line(options)], log).wait(check)


@pytest.mark.parametrize("kind", LEARNT)
def test_all_the_way(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, published, task = make_data(kind, tmp_path)
    options = options_of(task, tmp_path / "save", alum_epsilon=2.0, alum_alpha=0.0)
    output = train(data, tmp_path / "log", options)
    found = [
        {name.removeprefix("valid_"): float(value) for name, value in line.items() if value}
        for line in json_log(output, "valid")
        if line.pop("epoch", None) is not None
    ]
    names = {"f1", "accuracy", "precision", "recall"} if kind == "tags" else {"em", "f1"}
    assert names | {f"adv_{name}" for name in names} <= found[-1].keys()
    assert ("null_threshold" in found[-1]) == (kind == "spans or none")
    best = max(found, key=lambda line: line["f1"])
    assert best["f1"] > LEARNT[kind]
    # What the attack does to so small a model may be of use to it.
    assert any(line["adv_f1"] != line["f1"] for line in found)

    path = tmp_path / "save/checkpoint_best.pt"
    written = tmp_path / "answers.jsonl"
    command = ["--path", path, "--input", published, "--output", written]
    if kind == "spans or none":
        # To two digits; so questions near it may change sides.
        command += ["--null-threshold", best["null_threshold"]]
    capsys.readouterr()
    assert predict([*map(str, command)]) == 0
    said = {name: float(value) for name, value in EVALUATED.findall(capsys.readouterr().err)}
    for name in names:
        key = f"best_{name}" if kind == "spans or none" else name
        assert said[key] == pytest.approx(best[name], abs=0.01)
    answers = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(answers) == 40
    if kind == "tags":
        assert all(len(each["tokens"]) == len(each["tags"]) for each in answers)
        return
    articles = json.loads(published.read_text())["data"]
    asked = {q["id"]: p["context"] for p in articles[0]["paragraphs"] for q in p["qas"]}
    for each in answers:
        for span in each["n_best"]:
            context = asked[each["id"]]
            assert span["text"] == (context[span["start"] : span["end"]] if span["text"] else "")


@pytest.mark.parametrize("kind", ["tags", "spans"])
def test_a_few_examples_are_learnt_by_heart(kind: str, tmp_path: Path) -> None:
    data, _, task = make_data(kind, tmp_path, count=24)
    options = options_of(task, tmp_path / "save", valid_subset="train", alum_alpha=0.0, lr=5e-3)
    options |= {"encoder-layers": 2, "encoder-embed-dim": 64, "dropout": 0, "attention-dropout": 0}
    options |= {"max-epoch": 120, "validate-interval": 120, "no-save": True, "alum-validate": None}
    options |= {"batch-size": 24, "max-positions": 40, "encoder-ffn-embed-dim": 64}
    lines = json_log(train(data, tmp_path / "log", options), "train")
    [f1] = [float(line["train_f1"]) for line in lines if "train_f1" in line]
    assert f1 > 99


@pytest.mark.parametrize("kind", ["tags", "spans"])
def test_stopped_and_gone_on_it_ends_the_same(kind: str, tmp_path: Path) -> None:
    data, _, task = make_data(kind, tmp_path)
    more = {"max_update": 9, "alum_preset": "freelb", "max_epoch": None}
    whole = train(data, tmp_path / "whole.log", options_of(task, tmp_path / "whole", **more))
    save = tmp_path / "parts"
    train(data, tmp_path / "one.log", options_of(task, save, **{**more, "max_update": 4}))
    rest = train(data, tmp_path / "two.log", options_of(task, save, **more))
    last = [json_log(output, "valid")[-1] for output in (whole, rest)]
    for name, value in last[0].items():
        if name.endswith(("loss", "f1", "em", "accuracy")):
            assert last[1][name] == value, name


@pytest.mark.parametrize("kind", ["tags", "spans"])
def test_killed_it_ends_as_never_killed(kind: str, tmp_path: Path) -> None:
    data, _, task = make_data(kind, tmp_path)
    more = {"max_update": 8, "max_epoch": None, "save_interval_updates": 2, "log_interval": 1}
    train(data, tmp_path / "whole.log", options_of(task, tmp_path / "whole", **more))
    options = options_of(task, tmp_path / "killed", **more)
    command = [str(data), *command_line(options)]
    run = start(command, tmp_path / "one.log", Killed("train_inner", 5))
    run.wait(check=False)
    assert run.process.exitcode == -signal.SIGKILL, run.output()[-3000:]
    train(data, tmp_path / "two.log", options)
    found, expected = (last_state(tmp_path / name) for name in ("killed", "whole"))
    assert_equal(comparable(found), comparable(expected))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "tags",
            {"num_classes": 4},
            "--num-classes is 4, but .*data has 5 tags: give --num-classes 5",
        ),
        ("tags", {"criterion": "alum_span_prediction"}, "use --task alum_span_prediction"),
        ("spans", {"best_checkpoint_metric": "em_f1"}, "must be one of loss, em, f1"),
        ("spans", {"maximize_best_checkpoint_metric": None}, "better when it is higher: add"),
        ("spans", {"valid_subset": "test"}, "has no subset test: it has train, valid"),
        ("spans", {"init_token": 99}, "--init-token is 99"),
    ],
)
def test_wrong_usage(kind: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    data, _, task = make_data(kind, tmp_path)
    chosen = options_of(task, tmp_path / "save", **options)
    output = train(data, tmp_path / "log", chosen, check=False)
    assert re.search(message, output.strip().splitlines()[-1]), output[-600:]


def test_data_for_another_task(tmp_path: Path) -> None:
    data, _, _ = make_data("tags", tmp_path)
    chosen = options_of("alum_span_prediction", tmp_path / "save")
    output = train(data, tmp_path / "log", chosen, check=False)
    assert "was prepared for sequence_tagging: this task is for span_prediction" in output
