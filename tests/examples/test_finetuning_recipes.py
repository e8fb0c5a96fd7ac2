"""Published settings, as train.sh and as YAML: all are built, one is run from a table on."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fairseq import optim
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.roberta import RobertaModel
from fairseq.optim import lr_scheduler
from omegaconf import DictConfig, OmegaConf
from support.places import PLUGIN, ROOT
from support.recipes import (
    TINY,
    assert_trained_alike,
    composed,
    logged,
    make_stand_in,
    no_weights,
    options_of,
    parsed,
    run_script,
    script_command,
    set_up_task,
    settings_of,
)
from support.small_models import make_task
from support.tools import run_tool

from alum_fairseq.criterions.options import resolve
from alum_fairseq.data.record import DataRecord, SplitRecord
from alum_fairseq.prepare.datasets import known_task
from alum_fairseq.prepare.train_script import _recipe, train_script
from alum_fairseq.problems import (
    Classification,
    SequenceTagging,
    SpanPrediction,
    SupervisedProblem,
)

CONFIGS = ROOT / "examples" / "finetuning" / "config"

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
# Of the tasks that fairseq has not, and of choices: the data set, classes, peak learning rate,
# sequences an update, updates, warm-up, weight decay. Liu et al. 2019, table 10; fairseq's
# examples/roberta/commonsense_qa/README.md.
OTHERS = {
    "squad1_1": ("SQuAD1.1", None, 1.5e-5, 48, 3_690, 221, 0.01),
    "squad2_0": ("SQuAD2.0", None, 1.5e-5, 48, 5_500, 330, 0.01),
    "race": ("RACE", 4, 1e-5, 16, 21_968, 1_318, 0.1),
    "commonsense_qa": ("CommonsenseQA", 5, 1e-5, 16, 3_000, 150, 0.01),
    "hellaswag": ("HellaSwag", 4, 1e-5, 32, 12_480, 749, 0.1),
    "swag": ("SWAG", 4, 1e-5, 32, 22_990, 1_379, 0.1),
    "wnut_17": ("WNUT-17", 13, 3e-5, 32, 1_070, 64, 0.1),
}
# Data sets of texts that fill the model's positions.
LONG = ("squad1_1", "squad2_0", "race")
SHARED = ("finetuning", "choices", "spans", "tags", "decay_0_01")
EXAMPLES = AS_MNLI | {"hellaswag": (4, 39_905), "swag": (4, 73_546), "wnut_17": (13, 3_394)}
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


@pytest.fixture(scope="module")
def gpu_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fairseq-train that prints its arguments, and a Python that says that there is a GPU."""
    folder = make_stand_in(tmp_path_factory.mktemp("bin"))
    (folder / "python").write_text("#!/bin/sh\nexit 0\n")
    (folder / "python").chmod(0o755)
    return folder


@cache
def released(arch: str) -> SimpleNamespace:
    """A released model as far as train.sh depends on it, without memory for its weights."""
    cfg = OmegaConf.create({"arch": arch, "max_positions": 512})
    ARCH_CONFIG_REGISTRY[arch](cfg)
    with no_weights():
        model = RobertaModel.build_model(cfg, make_task())
    return SimpleNamespace(
        path=Path("/models/model.pt"),
        options={"arch": arch, "encoder_layers": cfg.encoder_layers},
        settings={"task": "masked_lm"},
        weights=model.state_dict(),
    )


def train_script_of(name: str, data: Path, arch: str) -> Path:
    """The train.sh that alum-prepare writes for a data set of its published size."""
    names = {"sts_b": "STS-B", "sst_2": "SST-2"} | {each: row[0] for each, row in OTHERS.items()}
    plan = known_task(names.get(name, name))
    rows, length = EXAMPLES.get(name, (0, 1000))[1], 512 if name in LONG else 130
    split = SplitRecord([], rows, 0, 0, 0, True, length=length)
    problem = plan.problem
    if name == "wnut_17":
        problem = problem.settled([f"{begin}-{kind} O" for begin in "BI" for kind in "abcdef"])
    record = DataRecord(
        problem=problem,
        inputs=2,  # the YAML gives a separator to single texts, too, which do not use it
        columns=[],
        label_column="",
        format="tsv",
        header=True,
        max_positions=512,
        bpe="gpt2",
        task=plan.task,
        splits={"train": split, "valid": split},
    )
    record.save(data)
    (data / "train.sh").write_text(train_script(record, data, released(arch))[0])
    return data / "train.sh"


def shell_command(
    name: str, data: Path, tools: Path, *more: str, arch: str = "roberta_large"
) -> list[str]:
    """What train.sh calls fairseq-train with; the YAML writes its log for machines."""
    log = ("alum", "--log-format", "json", "--log-interval", "100")
    return script_command(train_script_of(name, data, arch), *log, *more, tools=tools)


def yaml_config(name: str, data: Path, *more: str) -> DictConfig:
    restore = f"checkpoint.finetune_from_model={data / 'model.pt'}"
    return composed(CONFIGS, name, f"task.data={data}", restore, *more)


@pytest.mark.parametrize("name", NAMES)
def test_shell_and_yaml_agree_and_are_built(name: str, data: Path, gpu_tools: Path) -> None:
    cfg = yaml_config(name, data)
    shell = parsed(shell_command(name, data, gpu_tools))
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


@pytest.mark.parametrize("name", OTHERS)
def test_shell_and_yaml_agree_on_choices_spans_and_tags(
    name: str, data: Path, gpu_tools: Path
) -> None:
    _, classes, peak, sequences, updates, warmup, decay = OTHERS[name]
    cfg = yaml_config(name, data)
    assert settings_of(parsed(shell_command(name, data, gpu_tools))) == settings_of(cfg)
    assert cfg.task.get("num_classes") == classes
    assert cfg.dataset.batch_size * cfg.optimization.update_freq[0] == sequences
    # No pass is made smaller by its tokens.
    assert cfg.dataset.batch_size * (512 if name in LONG else 130) <= cfg.dataset.max_tokens
    assert (cfg.optimization.lr, cfg.optimization.max_update) == ([peak], updates)
    assert (cfg.lr_scheduler.warmup_updates, cfg.lr_scheduler.total_num_update) == (warmup, updates)
    assert cfg.optimizer.weight_decay == decay
    if name in EXAMPLES:
        assert updates == 10 * -(-EXAMPLES[name][1] // sequences)
    preset = resolve(cfg.criterion, "finetuning", divergence="kl", categorical=True)
    assert preset.finetuning_alpha == 1


def test_base_and_the_papers_adversary_are_a_word_away(data: Path, gpu_tools: Path) -> None:
    paper = ("--alum-preset", "paper")
    shell = parsed(shell_command("rte", data, gpu_tools, *paper, arch="roberta_base"))
    overrides = ("model._name=roberta_base", "criterion.alum_preset=paper")
    hydra = yaml_config("rte", data, *overrides)
    assert settings_of(shell) == settings_of(hydra)
    for cfg in (shell, hydra):
        preset = resolve(cfg.criterion, "finetuning", divergence="kl", categorical=True)
        assert (preset.finetuning_alpha, preset.adversary.epsilon) == (1, 1e-5)
        with no_weights():
            model = set_up_task(cfg).build_model(cfg.model)
        assert len(model.encoder.sentence_encoder.layers) == 12


@pytest.mark.parametrize(("name", "sequences"), [("mnli", 32), ("race", 16), ("squad1_1", 48)])
def test_the_update_is_the_same_on_four_gpus(
    name: str, sequences: int, data: Path, gpu_tools: Path
) -> None:
    text = train_script_of(name, data, "roberta_large").read_text()
    [more] = re.findall("On 4 GPUs add: (.*)", text)
    cfg = parsed(shell_command(name, data, gpu_tools, *more.split()))
    gpus, passes = cfg.distributed_training.distributed_world_size, cfg.optimization.update_freq
    assert (gpus, gpus * cfg.dataset.batch_size * passes[0]) == (4, sequences)


@pytest.mark.parametrize(
    ("task", "problem", "rates"),
    [
        (None, Classification(("a", "b")), ["1e-4", "1e-5", "1e-5"]),
        (None, SequenceTagging(("O", "B-x")), ["3e-4", "3e-5", "3e-5"]),
        (None, SpanPrediction(), ["3e-4", "3e-5", "3e-5"]),
        ("SQuAD1.1", SpanPrediction(), ["3e-4", "1.5e-5", "1.5e-5"]),
        ("RTE", Classification(("a", "b")), ["1e-4", "2e-5", "2e-5"]),
    ],
)
def test_a_small_encoder_has_a_higher_rate(
    task: str | None, problem: SupervisedProblem, rates: list[str]
) -> None:
    record = SimpleNamespace(
        task=task, splits={"train": SimpleNamespace(rows=100)}, problem=problem
    )
    assert [_recipe(record, width).lr for width in (384, 768, 1024)] == rates


def test_every_task_has_its_yaml_and_is_explained() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*NAMES, *OTHERS, *SHARED}
    for path in CONFIGS.glob("*.yaml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.read_text(encoding="utf-8").startswith("# ")
    page = (ROOT / "docs/finetuning.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    table = {row[1].strip("`"): row for row in rows if len(row) == 9 and row[1].startswith("`")}
    assert set(table) == {*NAMES, *OTHERS}
    words = {1: "number", None: "spans"}
    for name, numbers in (PUBLISHED | {each: row[1:-1] for each, row in OTHERS.items()}).items():
        shown = [cell.split(" ")[0].replace(",", "") for cell in table[name][2:7]]
        assert shown[0] == words.get(numbers[0], str(numbers[0]))
        assert [float(cell) for cell in shown[1:]] == [float(value) for value in numbers[1:]]


# One of them, from tables to a model

SHORT = {"max_update": 4, "log_interval": 1, "num_workers": 0}
TOTALS = ("total_num_update", "max_update")
GROUPS = {
    **dict.fromkeys(TINY, "model"),
    "max_update": "optimization",
    "log_interval": "common",
    "num_workers": "dataset",
}


def run_train_script(data: Path, save: Path, settings: dict[str, Any]) -> str:
    more = ("--save-dir", save, "--log-format", "json", *options_of(settings))
    return run_script(data / "train.sh", "alum", *more).stdout


@pytest.fixture(scope="module")
def by_shell(mrpc: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    save = tmp_path_factory.mktemp("shell")
    return save, run_train_script(mrpc[0], save, SHORT | {"total_num_update": 4})


@pytest.fixture(scope="module")
def by_hydra(mrpc: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    data, model = mrpc
    save = tmp_path_factory.mktemp("hydra")
    changes = [f"++{GROUPS[key]}.{key}={value}" for key, value in (TINY | SHORT).items()]
    output = run_tool(
        *("fairseq-hydra-train", "--config-dir", CONFIGS, "--config-name", "mrpc"),
        *(f"task.data={data}", f"checkpoint.save_dir={save}", f"common.user_dir={PLUGIN}"),
        *(f"checkpoint.finetune_from_model={model}", "model._name=roberta", "common.cpu=true"),
        # The rate is that of train.sh for so narrow an encoder.
        *("common.fp16=false", "task.max_positions=66", "optimization.lr=[1e-4]", *changes),
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
    output = run_train_script(mrpc[0], by_shell[0], SHORT | dict.fromkeys(TOTALS, 6))
    inner = logged(output, "train_inner")
    assert [int(line["num_updates"]) for line in inner] == [5, 6]
