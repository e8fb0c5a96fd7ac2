"""What fairseq's users switch on, together with the adversary: each option has its effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from support.places import PLUGIN
from support.quick_train import mlm_options, start
from support.tools import json_log, run_tool
from support.untrained import make_case

from alum_fairseq import UsageError


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(folder / "checkpoint_last.pt"))


def copy_of_valid(mlm_data: Path, folder: Path) -> Path:
    """The data with a second validation set."""
    folder.mkdir()
    for path in mlm_data.iterdir():
        (folder / path.name).symlink_to(path)
        if path.name.startswith("valid"):
            (folder / path.name.replace("valid", "valid1")).symlink_to(path)
    return folder


PRETRAINING = {
    "arch": "roberta_prenorm",
    "encoder_layers": 4,
    "encoder_layerdrop": 0.3,
    "quant_noise_pq": 0.1,
    "quant_noise_pq_block_size": 8,
    "untie_weights_roberta": True,
    "update_freq": 2,
    "clip_norm": 0.1,
    "amp": True,
    "store_ema": True,
    "ema_decay": 0.5,
    "batch_size": None,
    "max_tokens": 300,
    "sample_break_mode": "eos",
    "valid_subset": "valid,valid1",
    "disable_validation": False,
    "max_valid_steps": 2,
    "alum_validate": True,
    "alum_log_gain_interval": 2,
    "max_update": 6,
    "lr": 1e-2,
}


def test_everything_at_once_in_pre_training(mlm_data: Path, tmp_path: Path) -> None:
    data, save = copy_of_valid(mlm_data, tmp_path / "data"), tmp_path / "save"
    output = start(mlm_options(data, save, **PRETRAINING), tmp_path / "log").wait()
    updates = json_log(output, "train_inner")
    assert len(updates) == 6
    # LayerDrop may leave out every layer, and with them the adversary.
    assert sum(float(u["adv_skipped"]) for u in updates) < 6
    assert all(float(u["adv_loss"]) > 0 for u in updates if u["adv_loss"] is not None)
    assert all(float(u["clip"]) == 100 for u in updates)
    assert all("loss_scale" in u for u in updates)
    assert {u["ema_decay"] for u in updates} == {"0.5"}
    # --max-tokens: up to 300 at a time, in batches of different sizes, two an update.
    assert all(float(u["wpb"]) <= 600 for u in updates)
    assert len({u["bsz"] for u in updates}) > 1
    assert max(float(u["wpb"]) for u in updates) > 300
    for subset in ("valid", "valid1"):
        [line] = json_log(output, subset)
        assert float(line[f"{subset}_adv_ppl"]) > 0
    state = checkpoint(save)
    weights, averaged = state["model"], state["extra_state"]["ema"]
    prefix = "encoder.sentence_encoder."
    assert f"{prefix}layer_norm.weight" in weights  # pre-norm has one after the last layer
    embeddings = f"{prefix}embed_tokens.weight"
    assert not torch.equal(weights["encoder.lm_head.weight"], weights[embeddings])  # untied
    assert not torch.equal(averaged[embeddings], weights[embeddings])

    # Another run goes on from the weights with a new optimizer.
    again = {**PRETRAINING, "max_update": 2, "reset_optimizer": True, "store_ema": False}
    again |= {"reset_dataloader": True, "reset_meters": True, "disable_validation": True}
    output = start(mlm_options(data, save, **again), tmp_path / "log2").wait()
    assert f"Loaded checkpoint {save}/checkpoint_last.pt" in output
    state = checkpoint(save)
    steps = [moments["step"] for moments in state["last_optimizer_state"]["state"].values()]
    assert max(steps) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "effect",
    [{"encoder_layerdrop": 0.5}, {"quant_noise_pq": 0.5, "quant_noise_pq_block_size": 8}],
    ids=str,
)
def test_what_draws_random_numbers_is_the_same_after_a_restart(
    effect: dict[str, Any], mlm_data: Path, tmp_path: Path
) -> None:
    def train(name: str, max_update: int) -> dict[str, Any]:
        chosen = {**effect, "max_update": max_update, "alum_log_gain_interval": 2}
        start(mlm_options(mlm_data, tmp_path / name, **chosen), tmp_path / "log").wait()
        return checkpoint(tmp_path / name)["model"]

    train("parts", 3)
    parts, whole = train("parts", 5), train("whole", 5)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def fine_tuning(data: Path, save: Path, **options: Any) -> list[str]:
    return mlm_options(
        data,
        save,
        task="alum_sentence_prediction",
        criterion="alum_sentence_prediction",
        tokens_per_sample=None,
        sample_break_mode=None,
        max_positions=40,
        num_classes=3,
        init_token=0,
        disable_validation=False,
        alum_validate=True,
        max_update=None,
        **options,
    )


def test_keep_best_patience_and_spectral_norm_in_fine_tuning(
    mlm_data: Path, tmp_path: Path
) -> None:
    data = make_case("single", mlm_data, tmp_path).data
    save = tmp_path / "save"
    chosen = {
        "spectral_norm_classification_head": True,
        "keep_best_checkpoints": 2,
        "best_checkpoint_metric": "adv_task_loss",
        "max_epoch": 5,
    }
    output = start(fine_tuning(data, save, **chosen), tmp_path / "log").wait()
    under_attack = [float(line["valid_adv_task_loss"]) for line in json_log(output, "valid")]
    assert len(under_attack) == 5
    kept = sorted(float(p.name.split("_")[-1][:-4]) for p in save.glob("checkpoint.best_*.pt"))
    assert kept == sorted(under_attack)[:2]
    weights = checkpoint(save)["model"]
    head = "classification_heads.sentence_classification_head.out_proj."
    assert {f"{head}weight_orig", f"{head}weight_u", f"{head}weight_v"} <= set(weights)

    # A learning rate that changes nothing: no epoch is better than the first.
    chosen |= {"patience": 2, "max_epoch": 9, "lr": 1e-30, "keep_best_checkpoints": -1}
    output = start(fine_tuning(data, tmp_path / "idle", **chosen), tmp_path / "log2").wait()
    assert len(json_log(output, "valid")) == 3
    assert "early stop since valid performance hasn't improved for last 2 runs" in output


def build_from(command: list[str]) -> None:
    args = options.parse_args_and_arch(options.get_training_parser(), command)
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)


def test_sharded_weights_are_refused_by_name(mlm_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--ddp-backend is fully_sharded: .* choose pytorch_ddp"):
        build_from(mlm_options(mlm_data, tmp_path / "save", ddp_backend="fully_sharded"))


def test_waiting_workers_are_not_given_different_numbers_of_passes(
    mlm_data: Path, tmp_path: Path
) -> None:
    command = [*mlm_options(mlm_data, tmp_path / "save"), "--broadcast-buffers"]
    build_from(command)
    with pytest.raises(UsageError, match=r"--alum-fraction is 0\.5.* --broadcast-buffers"):
        build_from([*command, "--alum-fraction", "0.5"])


HYDRA = """\
# @package _group_
common: {{user_dir: {plugin}, cpu: true, log_format: json, log_interval: 1, seed: 1}}
checkpoint: {{save_dir: {save}, no_epoch_checkpoints: true}}
task: {{_name: alum_masked_lm, data: {data}, tokens_per_sample: 64, sample_break_mode: none}}
criterion: {{_name: alum_mlm}}
dataset: {{batch_size: 8, num_workers: 0, disable_validation: true}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{max_update: 4, lr: [0.001]}}
model:
  _name: roberta
  checkpoint_activations: true
  encoder_layers: 2
  encoder_embed_dim: 32
  encoder_ffn_embed_dim: 64
  encoder_attention_heads: 4
  max_positions: 66
"""


@pytest.mark.slow
def test_checkpointed_activations_change_no_number(mlm_data: Path, tmp_path: Path) -> None:
    """Which fairseq 0.12 has for RoBERTa under hydra only: fairseq-train does not know the flag."""
    settings = {"plugin": PLUGIN, "save": tmp_path / "hydra", "data": mlm_data}
    (tmp_path / "small.yaml").write_text(HYDRA.format(**settings))
    start(mlm_options(mlm_data, tmp_path / "plain"), tmp_path / "log").wait()
    run_tool(
        "fairseq-hydra-train",
        *("--config-dir", tmp_path, "--config-name", "small", f"hydra.run.dir={tmp_path}/run"),
        cwd=tmp_path,
    )
    state, plain = checkpoint(tmp_path / "hydra"), checkpoint(tmp_path / "plain")
    assert state["cfg"]["model"]["checkpoint_activations"]
    for name, weight in plain["model"].items():
        torch.testing.assert_close(state["model"][name], weight)
