"""End to end, through fairseq's commands in subprocesses: train, stop, resume, validate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.models.roberta import RobertaModel
from omegaconf import OmegaConf
from support.options import SMALL_MODEL, command_line
from support.places import PLUGIN, ROOT
from support.quick_train import in_two_processes
from support.tools import Train, json_log, run_tool


def load(path: Path) -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


def assert_same_training(one: Path, other: Path) -> None:
    """Parameters and optimiser state equal to the bit."""
    first, second = load(one), load(other)
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key
    states = (s["last_optimizer_state"]["state"] for s in (first, second))
    for a, b in zip(*(list(s.values()) for s in states), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"])
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def losses(output: str) -> list[tuple[str, ...]]:
    keys = ("num_updates", "loss", "adv_loss", "adv_norm", "gnorm")
    return [tuple(line.get(key, "") for key in keys) for line in json_log(output, "train_inner")]


def test_train_with_adversary_and_validate_under_attack(train: Train, tmp_path: Path) -> None:
    output = train(
        "save",
        max_update=6,
        max_valid_steps=None,
        alum_start_update=2,
        alum_log_gain_interval=2,
        alum_validate=True,
        validate_interval_updates=3,
        best_checkpoint_metric="adv_ppl",
    ).stdout
    updates = json_log(output, "train_inner")
    assert ["adv_loss" in u for u in updates] == [False, False, True, True, True, True]
    assert float(updates[-1]["adv_gain"]) > 1
    assert all(float(u["adv_skipped"]) == 0 for u in updates[2:])
    validations = json_log(output, "valid")
    assert [v["valid_num_updates"] for v in validations] == ["3", "6"]
    for name in ("loss", "ppl", "adv_loss", "adv_task_loss", "adv_ppl", "adv_gain", "adv_norm"):
        assert float(validations[-1][f"valid_{name}"]) > 0
    best = load(tmp_path / "save" / "checkpoint_best.pt")["extra_state"]["best"]
    assert best == min(float(v["valid_adv_ppl"]) for v in validations)
    assert output.count("ALUM: preset=calibrated alpha=0.3") == 1

    # fairseq-validate attacks, too, as the checkpoint says; --user-dir by the package's name.
    again = run_tool(
        *("fairseq-validate", tmp_path.parent / "none", "--user-dir", "alum_fairseq", "--cpu"),
        *("--path", "save/checkpoint_last.pt", "--valid-subset", "valid", "--batch-size", 8),
        *("--log-format", "json", "--num-workers", 0, "--task"),
        *("alum_masked_lm", "--model-overrides", repr({"data": data_of(tmp_path)})),
        cwd=tmp_path,
    ).stdout
    [validated] = json_log(again, "valid")
    for name in ("loss", "adv_ppl", "adv_gain"):
        assert validated[f"valid_{name}"] == validations[-1][f"valid_{name}"]


def data_of(tmp_path: Path) -> str:
    return load(tmp_path / "save" / "checkpoint_last.pt")["cfg"]["task"]["data"]


def test_start_up_is_not_buried_in_chatter(train: Train) -> None:
    output = train("save", max_update=1, python=True).stdout
    chatter = [
        line
        for line in output.splitlines()
        if "Warning" in line or "deprecat" in line or "hydra.cc" in line
    ]
    assert chatter == []


@pytest.mark.parametrize("stage", ["off", "before the start"])
def test_without_adversary_training_is_fairseqs_to_the_bit(
    stage: str, train: Train, tmp_path: Path
) -> None:
    train("stock", task="masked_lm", criterion="masked_lm")
    options = {"alum_alpha": 0} if stage == "off" else {"alum_start_update": 4}
    train("alum", **options)
    assert_same_training(
        tmp_path / "stock/checkpoint_last.pt", tmp_path / "alum/checkpoint_last.pt"
    )


def test_with_the_plugin_loaded_stock_training_is_as_without(train: Train, tmp_path: Path) -> None:
    # Without the plugin, a loader that is still ahead at the end may abort the process.
    stock = {"task": "masked_lm", "criterion": "masked_lm", "data_buffer_size": 0}
    train("with", **stock)
    train("without", user_dir=None, **stock)
    assert_same_training(
        tmp_path / "with/checkpoint_last.pt", tmp_path / "without/checkpoint_last.pt"
    )


def test_stop_and_resume_gives_what_an_unbroken_run_gives(train: Train, tmp_path: Path) -> None:
    options = {
        "alum_start_update": 1,
        "alum_warmup_updates": 4,
        "alum_log_gain_interval": 2,
        "update_freq": 2,
        "dropout": 0.1,
        "lr_scheduler": "polynomial_decay",
        "total_num_update": 10,
        "disable_validation": True,
    }
    whole = train("whole", max_update=6, **options).stdout
    first = train("parts", max_update=3, **options).stdout
    second = train("parts", max_update=6, **options).stdout
    assert losses(first) + losses(second) == losses(whole)
    assert len(losses(whole)) == 6
    assert_same_training(
        tmp_path / "whole/checkpoint_last.pt", tmp_path / "parts/checkpoint_last.pt"
    )


def test_works_with_fairseqs_own_task_and_sharded_data(
    train: Train, mlm_data: Path, tmp_path: Path
) -> None:
    shards = [tmp_path / "shard0", tmp_path / "shard1"]
    for shard in shards:
        shutil.copytree(mlm_data, shard)
    output = train(
        "save",
        data=f"{shards[0]}:{shards[1]}",
        task="masked_lm",
        batch_size=64,
        max_update=30,
        max_epoch=2,
        disable_validation=True,
    ).stdout
    assert "shard1/train" in output
    assert all("adv_loss" in update for update in json_log(output, "train_inner"))


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc", "eos"])
def test_sample_break_modes(mode: str, train: Train) -> None:
    output = train("save", sample_break_mode=mode, max_update=1, disable_validation=True).stdout
    assert "adv_loss" in json_log(output, "train_inner")[0]


def test_whole_word_masking(train: Train, mlm_data: Path, tmp_path: Path) -> None:
    """fairseq's own task fails here; ours masks whole words, of the BPE that --bpe names."""
    text = mlm_data.parent / "valid"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "sp"), vocab_size=200, minloglevel=2
    )
    model = str(tmp_path / "sp.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    encoded = [" ".join(pieces.encode(line, out_type=str)) for line in text.read_text().split("\n")]
    (tmp_path / "pieces").write_text("\n".join(encoded))
    run_tool(
        *("fairseq-preprocess", "--only-source", "--workers", 1, "--destdir", tmp_path / "bin"),
        *("--trainpref", tmp_path / "pieces", "--validpref", tmp_path / "pieces"),
    )
    options = {"data": tmp_path / "bin", "mask_whole_words": True, "max_update": 1}
    refused = train("save", check=False, **options)
    assert refused.returncode != 0
    last = refused.stdout.strip().splitlines()[-1]
    assert last == (
        "alum_fairseq: error: --mask-whole-words needs --bpe, which tells where a word begins"
    )
    output = train("save", bpe="sentencepiece", sentencepiece_model=model, **options).stdout
    assert "adv_loss" in json_log(output, "train_inner")[0]

    task = tasks.setup_task(
        OmegaConf.create(load(tmp_path / "save/checkpoint_last.pt")["cfg"]["task"])
    )
    task.load_dataset("valid")
    blocks = masked_words = 0
    for sample in (task.dataset("valid")[i] for i in range(20)):
        tokens, target = sample["net_input.src_tokens"], sample["target"]
        masked = target.ne(task.source_dictionary.pad())
        original = torch.where(masked, target, tokens)
        words: list[list[bool]] = []
        for piece, is_masked in zip(original.tolist(), masked.tolist(), strict=True):
            symbol = task.source_dictionary[piece]
            if not words or symbol.startswith("\u2581") or piece < 4:
                words.append([])
            words[-1].append(is_masked)
        # A block may begin amid a word, so its first word is looked at no further.
        assert all(len(set(word)) == 1 for word in words[2:])
        blocks += 1
        masked_words += sum(len(word) > 1 and word[0] for word in words)
    assert blocks == 20
    assert masked_words > 20  # words of several pieces, masked


def test_restore_into_another_run_and_from_pretrained(train: Train, tmp_path: Path) -> None:
    train("first", max_update=2, disable_validation=True)
    output = train(
        "second",
        max_update=1,
        restore_file=tmp_path / "first/checkpoint_last.pt",
        reset_optimizer=True,
        reset_dataloader=True,
        reset_meters=True,
        reset_lr_scheduler=True,
        lr=0,
        disable_validation=True,
    ).stdout
    assert "Loaded checkpoint" in output
    first, second = (
        load(tmp_path / d / "checkpoint_last.pt")["model"] for d in ("first", "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)  # the learning rate was 0

    hub = RobertaModel.from_pretrained(
        str(tmp_path / "first"),
        "checkpoint_last.pt",
        load(tmp_path / "first/checkpoint_last.pt")["cfg"]["task"]["data"],
        bpe=None,
    )
    state = hub.model.state_dict()
    assert all(torch.equal(first[key], state[key]) for key in first)


def test_two_processes(train: Train, tmp_path: Path) -> None:
    first, _ = in_two_processes(
        lambda **rank: train(
            "save", max_update=3, alum_validate=True, alum_log_gain_interval=2, **rank
        )
    )
    first = first.stdout
    updates = json_log(first, "train_inner")
    assert [update["bsz"] for update in updates] == ["16"] * 3
    assert all(float(update["adv_loss"]) > 0 for update in updates)
    assert float(json_log(first, "valid")[0]["valid_adv_ppl"]) > 0


# hydra: the same options as fields of a YAML file.

YAML = """\
# @package _group_
common: {{user_dir: {plugin}, cpu: true, log_format: json, log_interval: 1, seed: 1}}
checkpoint: {{save_dir: {save}, no_epoch_checkpoints: true}}
task:
  _name: alum_masked_lm
  data: {data}
  tokens_per_sample: 64
  sample_break_mode: none
criterion:
  _name: alum_mlm
  alum_start_update: 2
  alum_norm: l2
  alum_epsilon: 0.2
  alum_dropout: independent
  alum_validate: true
  alum_objective: task-loss
  alum_start: uniform
  alum_steps: 2
  alum_site: words
  alum_memory: low
  alum_fraction: 0.5
dataset: {{batch_size: 8, num_workers: 0, max_valid_steps: 2}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{max_update: 4, lr: [0.001]}}
model:
  _name: roberta
  encoder_layers: 2
  encoder_embed_dim: 32
  encoder_ffn_embed_dim: 64
  encoder_attention_heads: 4
  max_positions: 66
"""


def test_hydra_train_equals_fairseq_train(train: Train, mlm_data: Path, tmp_path: Path) -> None:
    settings = {"plugin": PLUGIN, "save": tmp_path / "hydra", "data": mlm_data}
    (tmp_path / "small.yaml").write_text(YAML.format(**settings))
    command = (
        "fairseq-hydra-train",
        *("--config-dir", tmp_path, "--config-name", "small", f"hydra.run.dir={tmp_path}/run"),
    )
    hydra = run_tool(*command, cwd=tmp_path, python=True).stdout
    plain = train(
        "plain",
        alum_start_update=2,
        alum_norm="l2",
        alum_epsilon=0.2,
        alum_dropout="independent",
        alum_validate=True,
        alum_objective="task-loss",
        alum_start="uniform",
        alum_steps=2,
        alum_site="words",
        alum_memory="low",
        alum_fraction=0.5,
        max_update=4,
    ).stdout
    for setting in (
        *("norm=l2", "dropout=independent", "objective=task-loss", "start=uniform", "steps=2"),
        *("site=words", "memory=low", "fraction=0.5"),
    ):
        assert f" {setting} " in hydra
    assert "adv_ppl" in hydra
    assert_same_training(
        tmp_path / "hydra/checkpoint_last.pt", tmp_path / "plain/checkpoint_last.pt"
    )
    assert len(json_log(plain, "train_inner")) == 4

    resumed = run_tool(*command, "optimization.max_update=5", cwd=tmp_path).stdout
    assert "Loaded checkpoint" in resumed
    assert "num_updates: 5 >= max_update: 5" in resumed

    gone = run_tool(*command, "+criterion.alum_interval=4", cwd=tmp_path, check=False)
    assert gone.returncode
    assert "--alum-interval is gone: give --alum-fraction" in gone.stdout
    assert "Traceback" not in gone.stdout


# Errors: one line, before training.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alum_site": 9}, "--alum-site is 9: it must be words, embeddings, or a layer from 0"),
        ({"alum_interval": 4}, "--alum-interval is gone: give --alum-fraction, which costs the"),
        ({"alum_epsilon": -1}, "--alum-epsilon is -1.0: it must be a finite number above 0"),
        ({"task": "masked_lm", "alum_start_update": 1}, "--alum-start-update needs the number"),
    ],
    ids=str,
)
def test_bad_options_end_in_one_line(
    options: dict[str, Any], message: str, train: Train, tmp_path: Path
) -> None:
    done = train("save", check=False, python="alum_layer" in options, **options)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("alum_fairseq: error: " + message)
    assert "begin training" not in done.stdout
    assert not list((tmp_path / "save").glob("*.pt"))


def test_the_plugin_by_name_and_by_path_from_any_directory(mlm_data: Path, tmp_path: Path) -> None:
    options = {
        "task": "alum_masked_lm",
        "criterion": "alum_mlm",
        **SMALL_MODEL,
        **{"optimizer": "adam", "batch-size": 8, "max-update": 1, "cpu": True, "num-workers": 0},
        **{"disable-validation": True, "no-save": True, "sample-break-mode": "none"},
    }
    for user_dir in ("alum_fairseq", ROOT / "alum_fairseq"):
        command = command_line({**options, "user-dir": user_dir})
        output = run_tool("fairseq-train", mlm_data, *command, cwd=tmp_path).stdout
        assert "ALUM: preset=calibrated" in output
