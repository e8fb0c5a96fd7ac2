"""What a criterion refuses before training: tasks, options and models that do not go together."""

from __future__ import annotations

from typing import Any

from torch import nn

from alum_fairseq.adversarial.presets import Preset
from alum_fairseq.encoder.modes import has_quant_noise, is_checkpointed
from alum_fairseq.encoder.tap import number_of_layers
from alum_fairseq.errors import UsageError


def check_task(task: Any, fits: bool, criterion: str, task_name: str) -> None:
    """Refuse fairseq's and our other tasks; whoever writes one of their own knows what they do.

    Args:
        task: that the criterion is to train on.
        fits: whether the criterion can train on its batches.
        criterion: its name.
        task_name: of the task that goes with it.

    Raises:
        UsageError: the task makes other batches.
    """
    ours = type(task).__module__.startswith(("fairseq.", "alum_fairseq."))
    if ours and not fits:
        raise UsageError(
            f"--criterion {criterion} cannot train on the batches of --task {_name_of(task)}: use "
            f"--task {task_name}"
        )


def check_needs(preset: Preset, options: Any, task: Any, task_name: str) -> None:
    """Make sure that the task tells the criterion what its options need.

    Raises:
        UsageError: it does not.
    """
    told = getattr(task, "passes_update_number", False)
    for option in ("start_update", "warmup_updates"):
        if getattr(options, f"alum_{option}") > 0 and not told:
            raise UsageError(
                f"--alum-{option.replace('_', '-')} needs the number of the update, which --task "
                f"{_name_of(task)} does not pass on: use --task {task_name}"
            )
    if preset.proximal > 0 and not getattr(task, "passes_ema_model", False):
        raise UsageError(
            f"--alum-proximal is {preset.proximal:g} (--alum-preset {options.alum_preset}), which "
            f"compares with a momentum model: add --store-ema and --task {task_name}, which make "
            "one, or give --alum-proximal 0"
        )


def check_model(preset: Preset, alpha: float, options: Any, model: nn.Module) -> None:
    """Make sure that the options go with a model.

    Raises:
        UsageError: it is no RoBERTa, has no such layer, or cannot be run again as asked for.
    """
    layers, site = number_of_layers(model), preset.site
    if site.isdecimal() and int(site) >= layers:
        raise UsageError(
            f"--alum-site is {site}: it must be words, embeddings, or a layer from 0 (the "
            f"embedding output) to {layers - 1} (the input of the last of this model's "
            f"{layers} layers)"
        )
    noised = any(map(has_quant_noise, model.modules()))
    if noised and options.alum_memory == "low":
        raise UsageError(
            "--alum-memory is low: it runs the clean pass twice, and --quant-noise-pq would "
            "noise the weights in both: leave one of the two away"
        )
    if noised and alpha > 0 and any(map(is_checkpointed, model.modules())):
        raise UsageError(
            "--checkpoint-activations runs every pass twice, and --quant-noise-pq would noise the "
            "weights in both: leave one of the two away"
        )


def _name_of(task: Any) -> str:
    return getattr(task.cfg, "_name", None) or type(task).__name__
