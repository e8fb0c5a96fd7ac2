"""The recipes of examples/pretraining: the small ones run, the large ones are built."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairseq import optim
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.data import Dictionary, data_utils
from fairseq.models.roberta import RobertaModel
from fairseq.optim import lr_scheduler
from omegaconf import DictConfig
from support.places import PLUGIN, ROOT
from support.recipes import (
    assert_trained_alike,
    composed,
    logged,
    no_weights,
    options_of,
    parsed,
    run_forked_script,
    run_script,
    set_up_task,
    settings_of,
)
from support.tools import run_tool

from alum_fairseq.criterions.options import resolve

RECIPES = ROOT / "examples" / "pretraining"
CONFIGS = RECIPES / "config"
GPT2_BPE = ROOT.parent / "shared" / "data" / "gpt2_bpe"
NAMES = ("from_scratch_small", "from_scratch_base", "continual_base", "continual_large")
LARGE = NAMES[1:]
# As many updates as a test can wait for, and a smaller model.
SHORT = {"max_update": 6, "total_num_update": 6, "warmup_updates": 2, "alum_start_update": 3}
TINY = {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32}


def run_recipe(name: str, *arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    return run_script(RECIPES / f"{name}.sh", *arguments, **settings)


def overrides_of(values: dict[str, Any]) -> list[str]:
    """The same options as hydra's overrides; there the schedule ends at max_update by itself."""
    groups = {
        "max_update": "optimization",
        "warmup_updates": "lr_scheduler",
        "alum_start_update": "criterion",
        "log_interval": "common",
        **dict.fromkeys(TINY, "model"),
    }
    return [f"{groups[key]}.{key}={value}" for key, value in values.items() if key in groups]


@pytest.fixture(scope="module")
def by_shell(sp_data: Path, text: Path) -> tuple[Path, str]:
    """The small recipe's folder and output, of a few updates."""
    changes = options_of(SHORT | TINY | {"log_interval": 1})
    output = run_recipe("from_scratch_small", sp_data, text / "shell", *changes).stdout
    return text / "shell", output


@pytest.fixture(scope="module")
def by_hydra(sp_data: Path, text: Path) -> tuple[Path, str]:
    """The same of the YAML recipe."""
    output = run_tool(
        *("fairseq-hydra-train", "--config-dir", CONFIGS, "--config-name", "from_scratch_small"),
        *(
            f"task.data={sp_data}",
            f"checkpoint.save_dir={text / 'hydra'}",
            f"common.user_dir={PLUGIN}",
        ),
        *overrides_of(SHORT | TINY | {"log_interval": 1}),
        cwd=text,
    ).stdout
    return text / "hydra", output


# Preparation


def test_sentencepiece_vocabulary(sp_data: Path, text: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(
        model_file=str(sp_data / "sentencepiece.bpe.model")
    )
    in_model = [
        model.id_to_piece(i) for i in range(len(model)) if not (model.is_control(i) or i == 0)
    ]
    lines = (sp_data / "dict.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines] == in_model
    dictionary = Dictionary.load(str(sp_data / "dict.txt"))
    dictionary.add_symbol("<mask>")
    assert len(dictionary) == 500
    assert {path.name for path in sp_data.iterdir()} >= {"train.bin", "valid.bin", "train.idx"}
    # What was encoded is the text, line for line, and the counts are those of its pieces.
    encoded = data_utils.load_indexed_dataset(str(sp_data / "train"), dictionary)
    written = (text / "train.txt").read_text(encoding="utf-8").splitlines()
    assert len(encoded) == len(written)
    assert model.decode(dictionary.string(encoded[3]).split()) == written[3]
    counts = {line.split()[0]: int(line.split()[1]) for line in lines}
    tokens = torch.cat([encoded[i] for i in range(len(encoded))])
    known = (tokens != dictionary.eos()) & (tokens != dictionary.unk())
    assert sum(counts.values()) == known.sum()


def test_special_symbols_in_the_text_are_text(text: Path, tmp_path: Path) -> None:
    english = (text / "valid.txt").read_text(encoding="utf-8")
    special = "a <s> and </s>, <pad>, an <unk> and a <mask>\n"
    (tmp_path / "text").write_text(english + special * 50, encoding="utf-8")
    run_recipe("prepare_sentencepiece", *[tmp_path / "text"] * 2, tmp_path / "data", 200)
    dictionary = Dictionary.load(str(tmp_path / "data" / "dict.txt"))
    assert dictionary.add_symbol("<mask>") == 199  # a new symbol, the last of 200
    encoded = data_utils.load_indexed_dataset(str(tmp_path / "data" / "train"), dictionary)
    assert dictionary.bos() not in encoded[len(encoded) - 1]
    assert dictionary.pad() not in encoded[len(encoded) - 1]


@pytest.mark.skipif(not GPT2_BPE.is_dir(), reason=f"{GPT2_BPE} (GPT-2's vocabulary) is absent")
def test_gpt2_bpe(text: Path, tmp_path: Path) -> None:
    from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig

    run_recipe(
        *("prepare_gpt2", text / "valid.txt", text / "valid.txt", tmp_path / "data", GPT2_BPE)
    )
    assert (tmp_path / "data/dict.txt").read_bytes() == (GPT2_BPE / "dict.txt").read_bytes()
    dictionary = Dictionary.load(str(tmp_path / "data/dict.txt"))
    bpe = GPT2BPE(
        GPT2BPEConfig(
            gpt2_encoder_json=str(GPT2_BPE / "encoder.json"),
            gpt2_vocab_bpe=str(GPT2_BPE / "vocab.bpe"),
        )
    )
    encoded = data_utils.load_indexed_dataset(str(tmp_path / "data/train"), dictionary)
    decoded = [bpe.decode(dictionary.string(encoded[i])) for i in range(len(encoded))]
    assert decoded == [
        line.strip() for line in (text / "valid.txt").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize(
    ("train", "vocab", "message"),
    [
        ("missing", 500, "missing: there is no such file"),
        ("empty", 500, "empty: the file has no text"),
        ("latin", 500, "latin: the text is not in UTF-8"),
        ("good", 10**6, "good: no vocabulary of 1000000: Vocabulary size too high"),
        ("good", 5, "good: no vocabulary of 5: Vocabulary size is smaller"),
        ("good", "many", "the size of the vocabulary is many: it must be 1 or more"),
    ],
)
def test_bad_text(train: str, vocab: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "latin").write_bytes("déjà vu\n".encode("latin-1"))
    (tmp_path / "good").write_text("some words of text\n" * 9)
    paths = (tmp_path / train, tmp_path / "good", tmp_path / "data")
    done = run_recipe("prepare_sentencepiece", *paths, vocab, check=False)
    assert done.returncode == 1
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "good", "latin"]


def test_existing_data_stays(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words\n")
    (tmp_path / "data").mkdir()
    paths = (tmp_path / "text", tmp_path / "text", tmp_path / "data")
    done = run_recipe("prepare_sentencepiece", *paths, check=False)
    assert done.returncode == 1
    assert "data exists: remove it" in done.stdout
    assert not list((tmp_path / "data").iterdir())


def test_gpt2_without_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words\n")
    paths = (tmp_path / "text", tmp_path / "text", tmp_path / "data", tmp_path)
    done = run_recipe("prepare_gpt2", *paths, check=False)
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path}/encoder.json: there is no such file\n"


# The small recipe, run


@pytest.mark.parametrize("way", ["by_shell", "by_hydra"])
def test_small_follows_the_curriculum(way: str, request: pytest.FixtureRequest) -> None:
    save, output = request.getfixturevalue(way)
    assert (save / "checkpoint_last.pt").is_file()
    updates = {int(line["num_updates"]): line for line in logged(output, "train_inner")}
    assert sorted(updates) == list(range(1, 7))
    # Update n is logged as n + 1: the adversary starts when 3 updates are done.
    assert [n for n, line in updates.items() if "adv_loss" in line] == [4, 5, 6]
    assert all(float(updates[n]["adv_loss"]) > 0 for n in (4, 5, 6))
    losses = [float(updates[n]["loss"]) for n in sorted(updates)]
    assert all(5 < loss < 12 for loss in losses)


def test_small_is_the_same_in_shell_and_yaml(
    by_shell: tuple[Path, str], by_hydra: tuple[Path, str]
) -> None:
    assert_trained_alike(by_shell, by_hydra)


@pytest.mark.parametrize("way", ["by_shell", "by_hydra"])
def test_small_loads_in_stock_fairseq(
    way: str, sp_data: Path, request: pytest.FixtureRequest
) -> None:
    save, _ = request.getfixturevalue(way)
    model = RobertaModel.from_pretrained(
        str(save),
        "checkpoint_last.pt",
        str(sp_data),
        bpe="sentencepiece",
        sentencepiece_model=str(sp_data / "sentencepiece.bpe.model"),
    )
    tokens = model.encode("The statement returns a value.")
    assert model.decode(tokens) == "The statement returns a value."
    assert model.extract_features(tokens).shape == (1, len(tokens), 16)


def save_as_released(checkpoint: Path, path: Path) -> None:
    """Write a checkpoint as those of 2019 are: old names, a Namespace, torch's old format."""
    state = torch.load(checkpoint)
    old = {"encoder.": "decoder.", "layernorm_embedding": "emb_layer_norm"}
    weights = {}
    for name, weight in state["model"].items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part, 1)
        weights[name] = weight
    state = {
        "args": state["cfg"]["model"],
        "model": weights,
        "optimizer_history": state["optimizer_history"],
        "extra_state": state["extra_state"],
    }
    torch.save(state, path, _use_new_zipfile_serialization=False)


def test_continual_takes_the_weights_and_later_goes_on(
    by_shell: tuple[Path, str], sp_data: Path, stand_in: Path, tmp_path: Path
) -> None:
    def train(updates: int) -> str:
        more = ("--cpu", *tiny, "--num-workers", 0, "--max-update", updates)
        places = (RECIPES / "continual_base.sh", sp_data, tmp_path / "save", released)
        return run_forked_script(*places, *more, tools=stand_in, PRECISION="fp32").stdout

    released = tmp_path / "model.pt"
    save_as_released(by_shell[0] / "checkpoint_last.pt", released)
    tiny = options_of(
        TINY
        | {"arch": "roberta", "encoder_attention_heads": 4, "max_positions": 128}
        | {"tokens_per_sample": 128, "update_freq": 1, "warmup_updates": 0, "log_interval": 1}
    )
    first = train(2)
    assert f"loading pretrained model from {released}" in first
    inner = logged(first, "train_inner")
    assert [int(line["num_updates"]) for line in inner] == [1, 2]
    assert all(float(line["adv_loss"]) > 0 for line in inner)
    assert float(inner[0]["lr"]) == pytest.approx(4e-5, rel=1e-3)
    before = torch.load(released)["model"]["decoder.lm_head.dense.weight"]
    after = torch.load(tmp_path / "save" / "checkpoint_last.pt")["model"]
    # Another initialisation would differ by its standard deviation, 0.02.
    assert 0 < (after["encoder.lm_head.dense.weight"] - before).abs().max() < 1e-3
    # Interrupted and started again, it does not start from the released model again.
    assert [int(line["num_updates"]) for line in logged(train(3), "train_inner")] == [3]


# The large recipes, parsed and built


@pytest.fixture(scope="module")
def large_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dictionary of as many entries as the released models'."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(50_260)))
    (folder / "model.pt").touch()
    return folder


def shell_command(name: str, data: Path, stand_in: Path, *more: str, **settings: Any) -> list[str]:
    """What a shell recipe calls fairseq-train with."""
    restore = [data / "model.pt"] if name.startswith("continual") else []
    settings = {"GPUS": 1, **settings}
    done = run_recipe(name, data, data / "save", *restore, *more, tools=stand_in, **settings)
    return json.loads(done.stdout)


def shell_config(name: str, data: Path, stand_in: Path, *more: str, **settings: Any) -> DictConfig:
    return parsed(shell_command(name, data, stand_in, *more, **settings))


def yaml_config(name: str, data: Path, *more: str) -> DictConfig:
    """What fairseq-hydra-train makes of a YAML recipe."""
    restore = f"checkpoint.finetune_from_model={data / 'model.pt'}"
    more = (*more, restore) if name.startswith("continual") else more
    return composed(CONFIGS, name, f"task.data={data}", *more)


@pytest.fixture(params=["shell", "yaml"])
def config(request: pytest.FixtureRequest, large_data: Path, stand_in: Path) -> Any:
    """Makes the resolved configuration of a recipe."""
    if request.param == "shell":
        return lambda name, **settings: shell_config(name, large_data, stand_in, **settings)
    return lambda name: yaml_config(name, large_data)


@pytest.mark.parametrize("name", NAMES)
def test_shell_and_yaml_agree(name: str, large_data: Path, stand_in: Path) -> None:
    shell, hydra = shell_config(name, large_data, stand_in), yaml_config(name, large_data)
    assert settings_of(shell) == settings_of(hydra)


@pytest.mark.parametrize("name", LARGE)
def test_large_is_built_with_the_papers_numbers(name: str, config: Any) -> None:
    cfg = config(name)
    task = set_up_task(cfg)
    assert len(task.source_dictionary) == 50_265
    with no_weights():
        model = task.build_model(cfg.model)
        criterion = task.build_criterion(cfg.criterion)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.build_optimizer(cfg.optimizer, parameters)
    schedule = lr_scheduler.build_lr_scheduler(cfg.lr_scheduler, optimizer)

    # Liu et al. 2019, table 9; with the dictionary, 125 and 355 million parameters.
    layers, width, inner, heads, millions = (
        (24, 1024, 4096, 16, 355) if name.endswith("large") else (12, 768, 3072, 12, 125)
    )
    encoder = model.encoder.sentence_encoder
    assert len(encoder.layers) == layers
    assert encoder.embed_tokens.weight.shape == (50_265, width)
    assert encoder.embed_positions.weight.shape == (514, width)  # 512, pad and its offset
    assert encoder.layers[0].fc1.weight.shape == (inner, width)
    assert encoder.layers[-1].self_attn.num_heads == heads
    assert encoder.dropout_module.p == 0.1
    assert encoder.layers[0].self_attn.dropout_module.p == 0.1
    assert round(sum(p.numel() for p in parameters) / 1e6) == millions
    assert type(optimizer).__name__ == "FairseqAdam"
    adam = optimizer.optimizer.param_groups[0]
    assert (tuple(adam["betas"]), adam["eps"], adam["weight_decay"]) == ((0.9, 0.98), 1e-6, 0.01)

    # Liu et al. 2020: 256 sequences of 512 tokens an update, and their schedule.
    per_update = (
        cfg.dataset.batch_size
        * cfg.optimization.update_freq[0]
        * cfg.distributed_training.distributed_world_size
    )
    assert (per_update, cfg.task.tokens_per_sample) == (256, 512)
    assert cfg.task.sample_break_mode == "complete"
    assert (cfg.common.fp16, cfg.optimization.clip_norm) == (True, 0.0)
    peak, updates = (4e-5, 100_000) if name.startswith("continual") else (1e-4, 1_000_000)
    assert cfg.optimization.max_update == updates
    assert schedule.step_update(10_000) == pytest.approx(peak)
    assert schedule.step_update(5_000) == pytest.approx(peak / 2)
    assert schedule.step_update(updates) == 0

    assert isinstance(criterion, MaskedLmLoss)
    start = 0 if name.startswith("continual") else updates // 2
    assert criterion.options.alum_preset == "calibrated"
    assert criterion.schedule.alpha_at(start) == criterion.schedule.alpha > 0
    assert start == 0 or criterion.schedule.alpha_at(start - 1) == 0


@pytest.mark.parametrize("name", LARGE)
def test_the_papers_adversary_is_a_word_away(name: str, large_data: Path, stand_in: Path) -> None:
    by_setting = shell_config(name, large_data, stand_in, PRESET="paper")
    by_option = shell_config(name, large_data, stand_in, "--alum-preset", "paper")
    by_yaml = yaml_config(name, large_data, "criterion.alum_preset=paper")
    for cfg in (by_setting, by_option, by_yaml):
        preset = resolve(cfg.criterion, "pretraining", divergence="kl", categorical=True)
        adversary = preset.adversary
        assert preset.pretraining_alpha == 10
        assert (adversary.steps, adversary.norm) == (1, "linf")
        assert (adversary.noise_std, adversary.step_size) == (1e-5, 1e-3)
        assert adversary.epsilon == 1e-5


@pytest.mark.parametrize(("gpus", "batch"), [(1, 8), (8, 8), (32, 8), (4, 16), (64, 4)])
def test_the_batch_is_the_same_on_any_number_of_gpus(
    gpus: int, batch: int, large_data: Path, stand_in: Path
) -> None:
    command = shell_command("continual_large", large_data, stand_in, GPUS=gpus, BATCH=batch)
    given = {key: command[command.index(f"--{key}") + 1] for key in ("batch-size", "update-freq")}
    assert command[command.index("--distributed-world-size") + 1] == str(gpus)
    assert gpus * int(given["batch-size"]) * int(given["update-freq"]) == 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"GPUS": 3}, "256 sequences do not divide into batches of 8 on 3 GPUs: set BATCH"),
        ({"GPUS": 64}, "256 sequences do not divide into batches of 8 on 64 GPUs: set BATCH"),
        ({"GPUS": 0}, "256 sequences do not divide"),
        ({"GPUS": "two"}, "GPUS=two, BATCH=8: they must be numbers"),
        ({"PRECISION": "fp8"}, "PRECISION=fp8: it must be fp16, bf16, amp or fp32"),
    ],
)
def test_bad_settings(
    settings: dict[str, Any], message: str, large_data: Path, stand_in: Path
) -> None:
    paths = (large_data, large_data / "save", large_data / "model.pt")
    settings = {"GPUS": 1, **settings}
    done = run_recipe("continual_base", *paths, check=False, tools=stand_in, **settings)
    assert done.returncode == 1
    assert done.stdout.startswith(f"continual_base.sh: {message}")
    assert len(done.stdout.splitlines()) == 1


def test_bad_paths(large_data: Path, tmp_path: Path) -> None:
    done = run_recipe("continual_base", large_data, tmp_path, tmp_path / "model.pt", check=False)
    assert done.returncode == 1
    assert done.stdout == f"continual_base.sh: {tmp_path}/model.pt: there is no such file\n"
    done = run_recipe("from_scratch_small", tmp_path, tmp_path / "save", check=False)
    assert done.returncode == 1
    assert f"{tmp_path} has no dict.txt: make it with" in done.stdout


# All of them


@pytest.mark.parametrize("name", [*NAMES, "prepare_sentencepiece", "prepare_gpt2"])
def test_usage(name: str) -> None:
    done = run_recipe(name, "DATA", check=False)
    assert done.returncode == 2
    assert f"bash {name}.sh " in done.stdout
    assert "set -euo" not in done.stdout


def test_every_recipe_comes_in_both_forms_and_is_explained() -> None:
    shell = {path.stem for path in RECIPES.glob("*.sh")}
    configs = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert shell == {*NAMES, "prepare_sentencepiece", "prepare_gpt2", "common"}
    assert configs == {*NAMES, "pretraining", "gpus"}
    page = (ROOT / "docs/pretraining.md").read_text(encoding="utf-8")
    for name in (*NAMES, "prepare_sentencepiece", "prepare_gpt2"):
        assert name in page
    for name in configs:
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
