"""What ALUM criteria log: sums of batches, the gain, and the task's metrics under attack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fairseq.logging import metrics
from fairseq.logging.meters import AverageMeter, ConcatTensorMeter, Meter, MetersDict
from torch import Tensor

# Logging outputs are summed over batches and workers, so only sums are logged. Every batch logs
# all of them, as tensors on one device: fairseq's fast synchronisation demands that workers agree.
SUMS = (
    "_alum_loss",  # what the method added to the task's loss, before alpha
    "_alum_sample_size",  # predictions in batches where it counts
    "_alum_norm",  # mean norm of the perturbation
    "_alum_batches",  # batches where it counts
    "_alum_attempts",  # batches that were attacked
    "_alum_skipped",  # batches whose perturbation was dropped
    "_alum_gain_adversarial",  # divergence found, where the gain was measured
    "_alum_gain_random",  # divergence of a random direction there
    "_alum_gain_measured",  # batches where it was
)
GAIN = SUMS[-3:]
UNDER_ATTACK = "_alum_attacked_"


def sums(device: torch.device, **values: Any) -> dict[str, Tensor]:
    """All of :data:`SUMS` as tensors on one device; those that are not given are zero."""
    # Numbers are filled in on the device: a copy from the host would wait for it.
    return {key: _scalar(values.get(key, 0), device) for key in SUMS}


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)


def reduce(task_metrics: Any, logging_outputs: list[dict[str, Any]]) -> None:
    """Log ALUM's metrics of these batches.

    Args:
        task_metrics: the extended criterion's ``reduce_metrics``.
        logging_outputs: of the batches, from all workers.
    """
    sums = [torch.as_tensor(sum(log.get(key, 0) for log in logging_outputs)) for key in SUMS]
    # In one copy: meters would ask a GPU for each number, and several times.
    total = dict(zip(SUMS, torch.stack(sums).cpu(), strict=True))
    if not total["_alum_attempts"]:
        return
    sample_size = total["_alum_sample_size"]
    if total["_alum_batches"]:
        if sample_size > 0:
            bits = total["_alum_loss"] / sample_size / math.log(2)
            metrics.log_scalar("adv_loss", bits, sample_size, round=4)
        batches = total["_alum_batches"]
        metrics.log_scalar("adv_norm", total["_alum_norm"] / batches, batches, round=5)
    metrics.log_scalar_sum("adv_skipped", total["_alum_skipped"])
    if total["_alum_gain_measured"]:
        for key in GAIN:
            metrics.log_scalar_sum(key, total[key])
        metrics.log_derived("adv_gain", _Gain())
    _log_under_attack(task_metrics, logging_outputs)


def ratio(found: float, by_chance: float) -> float:
    """The gain; NaN where the random divergence is zero, or less, by float32's rounding."""
    return found / by_chance if by_chance > 0 else math.nan


class _Gain:
    """The gain since the meters were last reset; where none was measured since, the last known."""

    def __init__(self) -> None:
        self._last = math.nan

    def __call__(self, meters: Mapping[str, Meter]) -> float:
        if meters["_alum_gain_measured"].sum > 0:
            found, by_chance = (
                float(meters[f"_alum_gain_{kind}"].sum) for kind in ("adversarial", "random")
            )
            self._last = round(ratio(found, by_chance), 2)
        return self._last


class _UnderAttack(Mapping[str, Meter]):
    """Meters by the names that the extended criterion gave them, of the passes under attack."""

    def __init__(self, meters: Mapping[str, Meter]) -> None:
        self._meters = meters

    def __getitem__(self, key: str) -> Meter:
        return self._meters[_attacked_name(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._meters)

    def __len__(self) -> int:
        return len(self._meters)


def _attacked_name(key: str) -> str:
    # adv_loss is what the method adds; the task's loss under attack needs another name.
    if key == "loss":
        return "adv_task_loss"
    return f"_adv{key}" if key.startswith("_") else f"adv_{key}"  # those are not for people


def _log_under_attack(task_metrics: Any, logging_outputs: list[dict[str, Any]]) -> None:
    """Log the extended criterion's metrics of the attacked passes, each with ``adv_`` before it."""
    start = len(UNDER_ATTACK)
    attacked = [
        {key[start:]: value for key, value in log.items() if key.startswith(UNDER_ATTACK)}
        for log in logging_outputs
    ]
    attacked = [log for log in attacked if log]
    if not attacked:
        return
    with metrics.aggregate(new_root=True) as meters:
        task_metrics(attacked)
    for key, meter in meters.items():
        name = _attacked_name(key)
        if isinstance(meter, MetersDict._DerivedMeter):
            fn = meter.fn
            metrics.log_derived(name, lambda all_meters, fn=fn: fn(_UnderAttack(all_meters)))
        elif isinstance(meter, ConcatTensorMeter):
            metrics.log_concat_tensor(name, meter.tensor)
        elif isinstance(meter, AverageMeter):
            metrics.log_scalar(name, meter.avg, meter.count, round=meter.round)
