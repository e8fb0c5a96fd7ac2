"""What the tests of recipes share: run them, and see what fairseq makes of their settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.roberta import model as roberta
from fairseq.tasks import FairseqTask
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from support.places import PLUGIN, ROOT
from support.quick_train import run_forked

# What a run is configured by, less where it reads and writes.
GROUPS = (
    *("task", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset"),
    *("common", "checkpoint", "distributed_training"),
)
# A model small enough for a recipe to be run.
TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "max_positions": 66,
}
PLACES = {"data", "save_dir", "user_dir", "finetune_from_model"}


def run_script(
    script: Path, *arguments: Any, check: bool = True, tools: Path | None = None, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run a shell recipe from the root of the clone, in this Python's environment.

    Commands in the folder ``tools`` are found before all others; settings become variables.
    """
    folders = [tools] if tools else []
    path = os.pathsep.join(
        [*map(str, folders), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    variables = {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORKERS": "2"}
    done = subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **variables, **{key: str(value) for key, value in settings.items()}},
    )
    if check and done.returncode:
        pytest.fail(f"{script.name}\n{done.stdout[-4000:]}", pytrace=False)
    return done


def logged(output: str, kind: str) -> list[dict[str, Any]]:
    """The lines of the JSON log, whether fairseq or hydra set the logging up."""
    found = re.findall(rf"\b{kind}\b[^{{\n]*(\{{\"epoch.*\}})$", output, flags=re.MULTILINE)
    return [json.loads(line) for line in found]


def options_of(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}".replace("_", "-"), value)]


def config_of(checkpoint: Path) -> DictConfig:
    return OmegaConf.create(torch.load(checkpoint)["cfg"], flags={"allow_objects": True})


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """What must be equal between two recipes that are said to be the same."""
    found = OmegaConf.to_container(
        OmegaConf.masked_copy(cfg, list(GROUPS)), resolve=True, enum_to_str=True
    )
    for group in found.values():
        for key in PLACES & set(group):
            del group[key]
    # Echoes of the group `checkpoint`.
    found["task"] = {k: v for k, v in found["task"].items() if not k.startswith("alum_")}
    return found


def assert_trained_alike(*runs: tuple[Path, str]) -> None:
    """Two runs, each its folder and its output: the same settings, and the same losses."""
    one, other = (settings_of(config_of(save / "checkpoint_last.pt")) for save, _ in runs)
    assert one == other
    losses = [[line["loss"] for line in logged(output, "train_inner")] for _, output in runs]
    assert losses[0] == losses[1]


def make_stand_in(folder: Path) -> Path:
    """Put a fairseq-train into a folder that prints its arguments."""
    script = folder / "fairseq-train"
    script.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    script.chmod(0o755)
    return folder


def script_command(script: Path, *arguments: Any, tools: Path, **settings: Any) -> list[str]:
    """What a recipe, or the train.sh of alum-prepare, gives to fairseq-train.

    ``tools`` is the folder of :func:`make_stand_in`, whose programs come before the script's own.
    """
    text = script.read_text(encoding="utf-8")
    if script.name == "train.sh":
        script = tools / script.name
        script.write_text(text.replace(f"PATH={Path(sys.executable).parent}:", f"PATH={tools}:"))
    said = run_script(script, *arguments, tools=tools, **settings).stdout
    return json.loads(said.splitlines()[-1])


def run_forked_script(
    script: Path, *arguments: Any, tools: Path, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """As :func:`run_script`, but what the recipe gives to fairseq-train goes to a forked one."""
    command = script_command(script, *arguments, tools=tools, **settings)
    return run_forked("train", command, cwd=ROOT, check=True)


def parsed(command: list[str]) -> DictConfig:
    """What fairseq-train makes of its arguments."""
    command = list(command)
    command[command.index("--user-dir") + 1] = str(PLUGIN)
    args = options.parse_args_and_arch(options.get_training_parser(), command)
    return convert_namespace_to_omegaconf(args)


def composed(configs: Path, name: str, *overrides: str) -> DictConfig:
    """What fairseq-hydra-train makes of a YAML recipe."""
    GlobalHydra.instance().clear()
    hydra_init(name)
    with initialize_config_dir(str(configs)):
        cfg = compose(name, overrides=[f"common.user_dir={PLUGIN}", *overrides])
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def set_up_task(cfg: DictConfig) -> FairseqTask:
    """The task of a recipe, which does not look at the model to start from: here it is a name."""
    return tasks.setup_task(OmegaConf.merge(cfg.task, {"alum_finetune_from_model": None}))


@contextmanager
def no_weights() -> Iterator[None]:
    """Build models without memory for their weights, hence without initialising them."""
    with mock.patch.object(roberta, "init_bert_params", return_value=None), torch.device("meta"):
        yield
