"""The recipes of examples/finetuning: all are built, one is run, from a table to a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairseq import optim
from fairseq.optim import lr_scheduler
from omegaconf import DictConfig
from support.places import PLUGIN, ROOT
from support.recipes import (
    TINY,
    assert_trained_alike,
    composed,
    logged,
    no_weights,
    options_of,
    parsed,
    run_script,
    set_up_task,
    settings_of,
)
from support.tools import run_tool

from alum_fairseq.criterions.options import resolve

RECIPE = ROOT / "examples" / "finetuning" / "finetune.sh"
CONFIGS = RECIPE.parent / "config"

# Classes, peak learning rate, sequences an update, updates, warm-up: fairseq's README.glue.md.
PUBLISHED = {
    "mnli": (3, 1e-5, 32, 123_873, 7_432),
    "qnli": (2, 1e-5, 32, 33_112, 1_986),
    "qqp": (2, 1e-5, 32, 113_272, 28_318),
    "rte": (2, 2e-5, 16, 2_036, 122),
    "sst_2": (2, 1e-5, 32, 20_935, 1_256),
    "mrpc": (2, 1e-5, 16, 2_296, 137),
    "cola": (2, 1e-5, 16, 5_336, 320),
    "sts_b": (1, 2e-5, 16, 3_598, 214),
}
# Classes and examples of the training set (without those that have no label).
AS_MNLI = {"snli": (3, 549_367), "scitail": (2, 23_596), "anli": (3, 162_865)}
NAMES = (*PUBLISHED, *AS_MNLI)
METRICS = {
    "cola": "mcc",
    "mrpc": "acc_and_f1",
    "qqp": "acc_and_f1",
    "sts_b": "pearson_and_spearman",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of prepared data as a task reads when it is set up, and the name of a model."""
    folder = tmp_path_factory.mktemp("data")
    for name, symbols in {"input0": range(50_260), "label": range(3)}.items():
        (folder / name).mkdir()
        (folder / name / "dict.txt").write_text("".join(f"{i} 1\n" for i in symbols))
    (folder / "model.pt").touch()
    return folder


def shell_command(name: str, data: Path, stand_in: Path, *more: str, **settings: Any) -> list[str]:
    """What the recipe calls fairseq-train with."""
    paths = (data, data / "save", data / "model.pt")
    return json.loads(run_script(RECIPE, name, *paths, *more, tools=stand_in, **settings).stdout)


def yaml_config(name: str, data: Path, *more: str) -> DictConfig:
    restore = f"checkpoint.finetune_from_model={data / 'model.pt'}"
    return composed(CONFIGS, name, f"task.data={data}", restore, *more)


@pytest.mark.parametrize("name", NAMES)
def test_shell_and_yaml_agree_and_are_built(name: str, data: Path, stand_in: Path) -> None:
    cfg = yaml_config(name, data)
    shell = parsed(shell_command(name, data, stand_in))
    assert settings_of(shell) == settings_of(cfg)
    assert shell.model._name == cfg.model._name == "roberta_large"

    if name in PUBLISHED:
        classes, peak, sequences, updates, warmup = PUBLISHED[name]
    else:
        (classes, examples), peak, sequences = AS_MNLI[name], 1e-5, 32
        updates = 10 * -(-examples // sequences)
        warmup = round(0.06 * updates)
    assert cfg.task.num_classes == classes
    assert cfg.dataset.batch_size * cfg.optimization.update_freq[0] == sequences
    assert cfg.dataset.max_tokens == 4400
    assert (cfg.optimization.max_update, cfg.optimization.max_epoch) == (updates, 10)
    assert cfg.checkpoint.best_checkpoint_metric == METRICS.get(name, "accuracy")
    assert cfg.checkpoint.maximize_best_checkpoint_metric

    task = set_up_task(cfg)
    with no_weights():
        model = task.build_model(cfg.model)
        criterion = task.build_criterion(cfg.criterion)
        optimizer = optim.build_optimizer(cfg.optimizer, list(model.parameters()))
    schedule = lr_scheduler.build_lr_scheduler(cfg.lr_scheduler, optimizer)
    head = model.classification_heads["sentence_classification_head"]
    assert head.out_proj.weight.shape == (classes, 1024)
    assert len(model.encoder.sentence_encoder.layers) == 24
    assert model.encoder.sentence_encoder.embed_positions.weight.shape[0] == 514
    assert model.encoder.sentence_encoder.dropout_module.p == 0.1
    adam = optimizer.optimizer.param_groups[0]
    assert (tuple(adam["betas"]), adam["eps"], adam["weight_decay"]) == ((0.9, 0.98), 1e-6, 0.1)
    assert schedule.step_update(warmup) == pytest.approx(peak)
    assert schedule.step_update(warmup // 2) == pytest.approx(peak * (warmup // 2) / warmup)
    assert schedule.step_update(updates) == 0
    assert (criterion.options.alum_preset, criterion.schedule.alpha) == ("calibrated", 1.0)
    assert criterion.preset.divergence == ("squared_error" if classes == 1 else "kl")
    assert (task.cfg.init_token, task.cfg.separator_token) == (
        task.dictionary.bos(),
        task.dictionary.eos(),
    )
    reports = ("report_mcc", "report_acc_and_f1", "report_pearson_and_spearman")
    metric = METRICS.get(name)
    assert [r for r in reports if getattr(criterion, r)] == ([f"report_{metric}"] if metric else [])


def test_base_and_the_papers_adversary_are_a_word_away(data: Path, stand_in: Path) -> None:
    shell = parsed(shell_command("rte", data, stand_in, ARCH="roberta_base", PRESET="paper"))
    overrides = ("model._name=roberta_base", "criterion.alum_preset=paper")
    hydra = yaml_config("rte", data, *overrides)
    assert settings_of(shell) == settings_of(hydra)
    for cfg in (shell, hydra):
        preset = resolve(cfg.criterion, "finetuning", divergence="kl", categorical=True)
        assert (preset.finetuning_alpha, preset.adversary.epsilon) == (1, 1e-5)
        with no_weights():
            model = set_up_task(cfg).build_model(cfg.model)
        assert len(model.encoder.sentence_encoder.layers) == 12


@pytest.mark.parametrize(("gpus", "batch"), [(1, None), (1, 8), (4, None), (8, 2), (32, None)])
def test_the_batch_is_the_same_on_any_number_of_gpus(
    gpus: int, batch: int | None, data: Path, stand_in: Path
) -> None:
    settings = {"GPUS": gpus} | ({} if batch is None else {"BATCH": batch})
    command = shell_command("mnli", data, stand_in, **settings)
    given = {
        key: int(command[command.index(f"--{key}") + 1])
        for key in ("batch-size", "update-freq", "distributed-world-size")
    }
    assert given["distributed-world-size"] == gpus
    assert given["batch-size"] == batch or batch is None
    assert given["batch-size"] * given["update-freq"] * gpus == 32


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("sst2", {}, "TASK is sst2: it must be cola, sst_2, mrpc,"),
        ("mnli", {"GPUS": 3}, "32 sequences do not divide into batches of 10 on 3 GPUs: set BATCH"),
        ("rte", {"GPUS": 32}, "16 sequences do not divide into batches of 0 on 32 GPUs"),
        ("rte", {"GPUS": 0}, "GPUS=0: it must be a number, 1 or more"),
        ("rte", {"GPUS": "all"}, "GPUS=all: it must be a number"),
        ("rte", {"BATCH": "x"}, "BATCH=x: it must be a number"),
        ("rte", {"PRECISION": "fp8"}, "PRECISION=fp8: it must be fp16, bf16, amp or fp32"),
    ],
)
def test_bad_settings(
    task: str, settings: dict[str, Any], message: str, data: Path, stand_in: Path
) -> None:
    paths = (data, data / "save", data / "model.pt")
    done = run_script(RECIPE, task, *paths, check=False, tools=stand_in, **settings)
    assert done.returncode == 1
    assert done.stdout.startswith(f"finetune.sh: {message}")
    assert len(done.stdout.splitlines()) == 1


def test_bad_paths(data: Path, tmp_path: Path) -> None:
    done = run_script(RECIPE, "rte", tmp_path, tmp_path, data / "model.pt", check=False)
    assert done.returncode == 1
    assert f"{tmp_path} has no input0/dict.txt: make it with alum-prepare" in done.stdout
    done = run_script(RECIPE, "rte", data, tmp_path, tmp_path / "model.pt", check=False)
    assert done.stdout == f"finetune.sh: {tmp_path}/model.pt: there is no such file\n"


def test_usage() -> None:
    done = run_script(RECIPE, "rte", check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("Fine-tunes a RoBERTa")
    for name in NAMES:
        assert re.search(rf"\b{name}\b", done.stdout)
    assert "set -euo" not in done.stdout


def test_every_task_comes_in_both_forms_and_is_explained() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*NAMES, "finetuning"}
    for path in CONFIGS.glob("*.yaml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.read_text(encoding="utf-8").startswith("# ")
    page = (ROOT / "docs/finetuning.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    table = {row[1].strip("`"): row for row in rows if len(row) == 9 and row[1].startswith("`")}
    assert set(table) == set(NAMES)
    for name, numbers in PUBLISHED.items():
        shown = [cell.split(" ")[0].replace(",", "") for cell in table[name][2:7]]
        assert shown[0] == ("number" if numbers[0] == 1 else str(numbers[0]))
        assert [float(cell) for cell in shown[1:]] == [float(value) for value in numbers[1:]]


# One of them, from tables to a model

SHORT = {"max_update": 4, "log_interval": 1, "num_workers": 0}
GROUPS = {
    **dict.fromkeys(TINY, "model"),
    "max_update": "optimization",
    "log_interval": "common",
    "num_workers": "dataset",
}


@pytest.fixture(scope="module")
def by_shell(mrpc: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    data, model = mrpc
    save = tmp_path_factory.mktemp("shell")
    changes = options_of(TINY | SHORT | {"total_num_update": 4})
    done = run_script(
        *(RECIPE, "mrpc", data, save, model, "--cpu", *changes), PRECISION="fp32", ARCH="roberta"
    )
    return save, done.stdout


@pytest.fixture(scope="module")
def by_hydra(mrpc: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    data, model = mrpc
    save = tmp_path_factory.mktemp("hydra")
    changes = [f"++{GROUPS[key]}.{key}={value}" for key, value in (TINY | SHORT).items()]
    output = run_tool(
        *("fairseq-hydra-train", "--config-dir", CONFIGS, "--config-name", "mrpc"),
        *(f"task.data={data}", f"checkpoint.save_dir={save}", f"common.user_dir={PLUGIN}"),
        *(f"checkpoint.finetune_from_model={model}", "model._name=roberta", "common.cpu=true"),
        *("common.fp16=false", "task.max_positions=66", *changes),
        cwd=save,
        python=True,  # hydra finds our options though the plugin is imported late
    ).stdout
    return save, output


@pytest.mark.parametrize("way", ["by_shell", "by_hydra"])
def test_mrpc_is_fine_tuned_from_the_model_with_the_adversary(
    way: str, mrpc: tuple[Path, Path], request: pytest.FixtureRequest
) -> None:
    save, output = request.getfixturevalue(way)
    inner = logged(output, "train_inner")
    assert [int(line["num_updates"]) for line in inner] == [1, 2, 3, 4]
    assert all(float(line["adv_loss"]) > 0 for line in inner)
    valid = logged(output, "valid")
    assert len(valid) == 2  # 40 examples are 3 updates: the end of each epoch
    assert {"valid_acc_and_f1", "valid_f1", "valid_accuracy"} <= set(valid[0])
    assert (save / "checkpoint_best.pt").is_file()
    weight = "encoder.sentence_encoder.embed_tokens.weight"
    before = torch.load(mrpc[1])["model"][weight]
    after = torch.load(save / "checkpoint_last.pt")["model"][weight]
    # Another initialisation would differ by the weights' standard deviation, 0.08.
    assert 0 < (after - before).abs().max() < 1e-3


def test_shell_and_hydra_train_alike(
    by_shell: tuple[Path, str], by_hydra: tuple[Path, str]
) -> None:
    assert_trained_alike(by_shell, by_hydra)


@pytest.mark.slow
def test_started_again_it_goes_on(mrpc: tuple[Path, Path], by_shell: tuple[Path, str]) -> None:
    data, model = mrpc
    changes = options_of(TINY | SHORT | {"total_num_update": 6, "max_update": 6})
    done = run_script(
        *(RECIPE, "mrpc", data, by_shell[0], model, "--cpu", *changes),
        PRECISION="fp32",
        ARCH="roberta",
    )
    inner = logged(done.stdout, "train_inner")
    assert [int(line["num_updates"]) for line in inner] == [5, 6]
