"""What the documents name runs: settings, overrides and commands, on a tiny model.

Each is found in the documents by its form. One that is in no table here fails, and so does one of a
table that no document names any more.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.places import PLUGIN, ROOT
from support.recipes import (
    TINY,
    config_of,
    logged,
    options_of,
    run_forked_script,
    run_script,
)
from support.tools import run_tool

from alum_fairseq import PRESETS

EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", EXAMPLES / "README.md"]
PAGES += sorted(ROOT.glob("docs/**/*.md"))
GENERATED = ("report.md",)  # test_evidence.py
PAGES = [page for page in PAGES if page.name not in GENERATED]
SCRIPTS = [*sorted(EXAMPLES.glob("*/*.sh")), *sorted((ROOT / "scripts").glob("*.sh"))]
SCRIPTS.append(EXAMPLES / "scale/train.slurm")

# Where what is not run here is run, or why it cannot be.
GPUS = "needs that many GPUs; what it resolves to: test_finetuning_recipes.py, test_recipes.py"
SCALE = "tests/examples/test_scale.py"
PRETRAIN = "tests/examples/test_recipes.py"
SETUP = "installs an environment: .ci/ runs it"

# Options of fine-tuning, as they are given to train.sh on a CPU.
FINETUNING: list[list[str]] = [
    *([f"--{precision}"] for precision in ("fp16", "bf16", "amp")),
    ["--batch-size", "8", "--update-freq", "2"],
    *(["--alum-preset", preset] for preset in PRESETS),
]
PRETRAINING = [
    *({"PRECISION": precision} for precision in ("fp16", "bf16", "amp", "fp32")),
    {"PRESET": "paper"},
    {"PRESET": "reference"},
    {"BATCH": 4},
    {"BATCH": 8},
    {"BATCH": 32},
]
# Those that are run elsewhere, or cannot be.
SETTINGS = {
    "NODES=2": SCALE,
    "HEAD=10.0.0.1": SCALE,
    "OMP_NUM_THREADS=1": "every test runs with it",
    "ALUM_MUTANTS=2000": "tests/commands/test_broken_files.py",
    "ALUM_TORCH='torch==2.13.0": SETUP,
}
# In the comments at the top of scripts: without a value.
NAMED = {
    "BATCH": "PRETRAINING, above",
    "PRECISION": "PRETRAINING, above",
    "PRESET": "PRETRAINING, above",
    "GPUS": GPUS,
    "WORKERS": "tests/support/recipes.py",  # every recipe is run with it
    **dict.fromkeys(("NODES", "HEAD", "SAVE_EVERY", "RESTARTS"), SCALE),
    **dict.fromkeys(("ALUM_PYTHON", "ALUM_TORCH", "ALUM_SCRATCH"), SETUP),
}
# Overrides of YAML recipes; those that go together are given together.
OVERRIDES: list[list[str]] = [
    ["common.fp16=false", "common.bf16=true"],
    ["criterion.alum_preset=paper"],
    ["model._name=roberta_base"],
    ["dataset.batch_size=8", "optimization.update_freq=[4]"],
    ["+criterion.alum_memory=low"],
]
PLACES = (
    "common.user_dir=",
    "task.data=",
    "checkpoint.save_dir=",
    "checkpoint.finetune_from_model=",
)

# Commands by how they begin. What is run "here" is run as the README has it.
COMMANDS = {
    "alum-prepare --train": "here",
    "bash data/train.sh": "here",
    "fairseq-validate data": "here",
    "alum-predict": "here",
    "alum-convert to-hf": "here",
    "alum-robustness": "here",
    "alum-robustness compare": "tests/robustness/test_published_attacks.py",
    "alum-robustness synonyms": "tests/robustness/test_published_attacks.py",
    "bash data/rte/train.sh": "tests/prepare/test_train_script.py",
    "bash wnut/train.sh": "tests/training/test_spans_and_tags.py",
    "bash policyqa/train.sh": "tests/training/test_spans_and_tags.py",
    "sed 's/": "needs the published file",
    "awk -v RS=": "needs the published file",
    "bash mine/train.sh": "tests/prepare/test_train_script.py",
    "fairseq-hydra-train --config-dir examples/finetuning/config": "here",
    "fairseq-train DATA": "begins an example; the whole: tests/training/test_train.py",
    "alum-convert from-hf": "here",
    "alum-prepare --task RTE": "tests/prepare/test_prepare.py",
    "alum-prepare --task HellaSwag": "tests/prepare/test_published_layouts.py",
    "alum-prepare --task ANLI MNLI": "tests/prepare/test_several_training_sets.py",
    "fairseq-hydra-train --config-dir examples/pretraining/config": PRETRAIN,
    "bash examples/pretraining/": PRETRAIN,
    "bash examples/scale/": SCALE,
    "sbatch": SCALE,
    "python scripts/benchmark.py": "tests/scripts/test_benchmark.py",
    "python examples/presets/compare.py": "tests/criterions/test_gain.py",
    "bash examples/presets/compare.sh": "trains for minutes; what it calls is in other rows",
    "grid": "tests/examples/test_evidence.py",
    "python examples/huggingface/train.py": "tests/huggingface/test_huggingface.py",
    "python examples/evidence/analyse.py": "tests/examples/test_evidence.py",
    "python examples/evidence/grid.py": "tests/examples/test_evidence.py",
    "python -m pytest tests/commands/test_broken_files.py": "tests/commands/test_broken_files.py",
    "python scripts/docs.py": "tests/docs/test_generated.py",
    "bash scripts/docs.sh": "what it calls: tests/docs/test_generated.py, tests/docs/test_site.py",
    "conda": "needs conda; the steps after it are those of scripts/setup.sh",
    "docker": "needs docker; in the image scripts/setup.sh runs",
    "pip download": "tests/docs/test_tutorial.py",
    "python -m zipfile": "tests/docs/test_tutorial.py",
    "pip install": SETUP + "; the versions: tests/docs/test_readme.py",
    ". .venv/bin/activate": SETUP,
    "export OMP_NUM_THREADS": "every test runs with it",
    "bash scripts/demo.sh": "tests/examples/test_demo.py",
    "bash scripts/test.sh": "runs these tests",
    "bash scripts/setup.sh": SETUP,
    "git clone": "needs a network",
    "cd alum_fairseq": "the clone of the row before",
}

# The tables against the documents


def text_of(page: Path) -> str:
    """A page without its generated part, or the comment at the top of a script."""
    text = page.read_text(encoding="utf-8").partition("<!-- Made by")[0]
    if page in SCRIPTS:
        text = "\n".join(re.match(r"(#.*\n)*", text)[0].splitlines())
    return text


def documented_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", "".join(map(text_of, PAGES)), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*|^\s*#.*", "", line) for line in lines]
    found = []
    for line in lines:
        for command in re.split(r" \| | && ", line):
            command = re.sub(r"^(?:[A-Z_]+=(?:'[^']*'|\S+) )+", "", command).strip()
            if command and not command.startswith(("echo ", "grid()", "...")):
                found.append(" ".join(command.split()))
    return found


def test_every_command_has_its_row() -> None:
    used = set()
    for command in documented_commands():
        rows = [row for row in COMMANDS if command.startswith(row)]
        assert rows, f"{command}: say in COMMANDS where it is run"
        used.add(max(rows, key=len))
    assert used == set(COMMANDS)


def test_every_setting_has_its_row() -> None:
    pages = "".join(map(text_of, PAGES))
    found = {name.rstrip("`,.:") for name in re.findall(r"\b[A-Z][A-Z_]{3,}=[^\s`,]+", pages)}
    run = {f"{name}={value}" for row in PRETRAINING for name, value in row.items()}
    assert found - run == set(SETTINGS)
    headers = "".join(text_of(script) + "\n\n" for script in SCRIPTS)
    lists = re.findall(r"^# Settings?[:,].*?(?=\.\n|\n\n)", headers, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", " ".join(lists))) - {"CUDA"}
    assert named | {"ALUM_SCRATCH"} == set(NAMED)


def test_every_override_has_its_row() -> None:
    pages = "".join(map(text_of, PAGES))
    groups = "common|task|model|criterion|dataset|optimization|distributed_training|checkpoint"
    found = {o.rstrip("`'.;,)") for o in re.findall(rf"\+?\b(?:{groups})\.\w+=[^\s`;]+", pages)}
    found = {override for override in found if not override.startswith(PLACES)}
    on_gpus = {f"distributed_training.distributed_world_size={number}" for number in (4, 8)}
    assert found - on_gpus == {override for row in OVERRIDES for override in row}  # GPUS


@pytest.mark.parametrize("where", sorted({*COMMANDS.values(), *SETTINGS.values(), *NAMED.values()}))
def test_where_it_is_run_is_there(where: str) -> None:
    for path in re.findall(r"tests/[\w/]+\.py", where):
        text = (ROOT / path).read_text(encoding="utf-8")
        for row in [row for row in COMMANDS if COMMANDS[row] == where and row.endswith(".py")]:
            assert Path(row).stem in text, row


# Recipes


def changes(settings: dict[str, Any], **more: Any) -> list[Any]:
    short = {"max_update": 2, "total_num_update": 2, "log_interval": 1, "num_workers": 0, **more}
    # fairseq puts the gradients of --fp16 into one tensor on a GPU, or leaves them as they are.
    flat = ["--fp16-no-flatten-grads"] * (settings["PRECISION"] == "fp16")
    momentum = ["--store-ema"] * (settings.get("PRESET") == "smart")
    return ["--cpu", *options_of(TINY | short), *flat, *momentum]


def ids(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def slow_but(rows: list[Any], few: int) -> list[Any]:
    """The first rows of every day, the others with --all."""
    return [
        pytest.param(row, marks=[pytest.mark.slow] * (number >= few))
        for number, row in enumerate(rows)
    ]


def check(output: str, save: Path) -> None:
    inner = logged(output, "train_inner")
    assert [int(line["num_updates"]) for line in inner] == [1, 2]
    # Of an untrained model the paper's divergence is below what the log shows.
    assert all(float(line["adv_loss"]) >= 0 == float(line["adv_skipped"]) for line in inner)
    assert (save / "checkpoint_last.pt").is_file()


@pytest.mark.parametrize("options", slow_but(FINETUNING, 2), ids=" ".join)
def test_fine_tuning_runs_with_each_option(
    options: list[str], mrpc: tuple[Path, Path], stand_in: Path, tmp_path: Path
) -> None:
    settings = {"PRECISION": options[0].removeprefix("--"), "PRESET": options[-1]}
    more = ["--save-dir", tmp_path, "--log-format", "json", *changes(settings), *options]
    output = run_forked_script(mrpc[0] / "train.sh", "alum", *more, tools=stand_in).stdout
    check(output, tmp_path)
    cfg = config_of(tmp_path / "checkpoint_last.pt")
    preset = options[-1] if "--alum-preset" in options else "calibrated"
    assert cfg.criterion.alum_preset == preset
    for precision in ("fp16", "bf16", "amp"):
        assert cfg.common[precision] == (f"--{precision}" in options)


@pytest.mark.parametrize("settings", slow_but(PRETRAINING, 0), ids=ids)
def test_pre_training_runs_with_each_setting(
    settings: dict[str, Any], sp_data: Path, stand_in: Path, tmp_path: Path
) -> None:
    settings = {"PRECISION": "fp32", "GPUS": 1, **settings}
    more = {"tokens_per_sample": 64, "alum_start_update": 0, "update_freq": 1, "arch": "roberta"}
    command = (EXAMPLES / "pretraining/from_scratch_base.sh", sp_data, tmp_path)
    command += tuple(changes(settings, **more))
    output = run_forked_script(*command, tools=stand_in, **settings).stdout
    check(output, tmp_path)
    cfg = config_of(tmp_path / "checkpoint_last.pt")
    assert cfg.dataset.batch_size == settings.get("BATCH", 8)


@pytest.mark.parametrize("overrides", slow_but(OVERRIDES, 1), ids=" ".join)
def test_fine_tuning_runs_with_each_override(
    overrides: list[str], mrpc: tuple[Path, Path], tmp_path: Path
) -> None:
    data, model = mrpc
    small = [f"++model.{name}={value}" for name, value in TINY.items()]
    given = {override.split("=")[0].lstrip("+") for override in overrides}
    defaults = {"model._name": "roberta", "common.fp16": "false"}
    output = run_tool(
        *("fairseq-hydra-train", "--config-dir", EXAMPLES / "finetuning/config"),
        *("--config-name", "mrpc", f"task.data={data}", f"checkpoint.save_dir={tmp_path}"),
        *(f"checkpoint.finetune_from_model={model}", f"common.user_dir={PLUGIN}"),
        *("common.cpu=true", "task.max_positions=66", "dataset.num_workers=0", *small),
        *("optimization.max_update=2", "common.log_interval=1", *overrides),
        *(f"{name}={value}" for name, value in defaults.items() if name not in given),
        cwd=tmp_path,
    ).stdout
    check(output, tmp_path)


# From a table to predictions, as the README and the manual have it


@pytest.fixture(scope="module")
def tables(mlm_data: Path, trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables that the commands name, and a Hugging Face folder to start from."""
    folder = tmp_path_factory.mktemp("README")
    lines = (mlm_data.parent / "train").read_text().splitlines()
    texts = [line.split() for line in lines if len(line.split()) > 20][:90]
    for name, some in {"train": texts[:40], "dev": texts[40:61], "test": texts[61:]}.items():
        rows = [f"{' '.join(words[:12])}\t{i % 2}\n" for i, words in enumerate(some)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    (folder / "words").mkdir()
    (folder / "words/dict.txt").write_text((mlm_data / "dict.txt").read_text())
    words = ("--data", mlm_data, "--vocabulary", folder / "words")
    run_tool("alum-convert", "to-hf", trained_model, folder / "HF_FOLDER", *words)
    return folder


def readme_commands(begin: str) -> list[str]:
    """Those that begin so; several pages may have the same."""
    return [c for c in dict.fromkeys(documented_commands()) if c.startswith(begin)]


@pytest.mark.slow
def test_from_a_table_to_a_report(tables: Path, stand_in: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = [b for b in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) if "from-hf" in b]
    [validate] = readme_commands("fairseq-validate")
    [one] = readme_commands("alum-robustness --path data/alum/checkpoint_best.pt")
    [many] = [c for c in readme_commands("alum-robustness") if "data/plain2" in c]
    script = [
        block.replace("alum-robustness", "alum-robustness --quick"),
        f"{validate} --cpu",
        "echo 'A gripping film.' | " + readme_commands("alum-predict")[0],
        *readme_commands("alum-convert to-hf"),
        "for name in plain alum; do cp -r data/$name data/${name}2; done",
        f"{one} --quick --output one",
        many,
    ]
    (tables / "all.sh").write_text("set -e\ncd " + str(tables) + "\n" + "\n".join(script) + "\n")
    output = run_script(tables / "all.sh").stdout
    assert (tables / "data/alum-prepare.json").is_file()
    assert re.search(r"valid on 'valid' subset.*accuracy", output)
    assert re.search(r"^[01]\t", output, flags=re.MULTILINE)
    assert json.loads((tables / "finetuned-hf/config.json").read_text())["model_type"] == "roberta"
    for report in ("robustness", "one", "report"):
        assert (tables / report / "report.html").is_file()
