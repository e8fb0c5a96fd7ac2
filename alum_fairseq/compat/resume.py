"""A run that goes on from a checkpoint goes on as if it had never stopped.

fairseq 0.12's checkpoints lack some of what a run depends on. Here they get it, under
``extra_state/unbroken``, for our tasks and criteria alone; checkpoints without it load as before,
and fairseq without the plugin ignores it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from typing import Any

import torch
from torch import Tensor

from alum_fairseq.compat.ema import started_from_the_weights
from alum_fairseq.compat.ours import trains_ours

logger = logging.getLogger(__name__)

_KEY = "unbroken"
_PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
_PATIENCE = ("best", "num_runs")


def resume_as_never_stopped() -> None:
    """Save and restore all that a run depends on, and leave a run alone that is over.

    Can go when stock fairseq, stopped at the end of an epoch and started again, ends as one that
    was never stopped, with ``--fp16``, with ``--patience`` and with ``reduce_lr_on_plateau``, and
    makes no further update when it is given again.
    """
    from fairseq import checkpoint_utils
    from fairseq.trainer import Trainer

    state_dict, load = Trainer.state_dict, checkpoint_utils.load_checkpoint

    def with_the_rest(self: Trainer) -> dict[str, Any]:
        state = state_dict(self)
        if trains_ours(self):
            state["extra_state"][_KEY] = _rest(self)
        return state

    def load_checkpoint(cfg: Any, trainer: Trainer, **kwargs: Any) -> tuple[Any, Any]:
        if not trains_ours(trainer):
            return load(cfg, trainer, **kwargs)
        _forget_other_runs()
        with started_from_the_weights(trainer):
            extra_state, batches = load(cfg, trainer, **kwargs)
        if extra_state is not None and trainer.get_num_updates():  # not a fresh start from weights
            _restore(extra_state, cfg, trainer)
            _leave_alone_what_is_over(cfg, trainer, batches)
        return extra_state, batches

    Trainer.state_dict = with_the_rest
    checkpoint_utils.load_checkpoint = load_checkpoint


def _command() -> Any:
    """The module of ``fairseq-train``, which keeps the state of early stopping in a function."""
    return sys.modules.get("fairseq_cli.train", sys.modules["__main__"])


def _patience() -> dict[str, Any]:
    """How long no validation was better: attributes of a function of fairseq's."""
    return vars(getattr(_command(), "should_stop_early", _patience))


def _forget_other_runs() -> None:
    """Forget what an earlier run of this process (hydra's ``--multirun``) left in functions."""
    from fairseq import checkpoint_utils

    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    for name in _PATIENCE:
        _patience().pop(name, None)
    command = _command()
    if hasattr(command, "train"):
        command.train = vars(command.train).get("put_back", command.train)


def _rest(trainer: Any) -> dict[str, Any]:
    """What fairseq's checkpoints lack."""
    rest: dict[str, Any] = {"amp_retries": getattr(trainer, "_amp_retries", 0)}
    patience = _patience()
    if "best" in patience:
        rest["patience"] = {"best": float(patience["best"]), "num_runs": patience["num_runs"]}
    plateau = _plateau(trainer)
    if plateau is not None:
        counters = {name: float(getattr(plateau, name)) for name in _PLATEAU}
        rest["plateau"] = {**counters, "lr": trainer.get_lr(), "asked": _asked_lr(trainer)}
    if not trainer.cfg.checkpoint.no_save_optimizer_state:
        rest["scaler"] = _scaler_state(_scaler(trainer))
        rest["masters"] = [master.detach() for master in _masters(trainer)]
    return rest


def _restore(extra_state: dict[str, Any], cfg: Any, trainer: Any) -> None:
    rest = extra_state.pop(_KEY, {})
    if hasattr(trainer, "_amp_retries"):
        trainer._amp_retries = rest.get("amp_retries", 0)
    if not cfg.reset_meters:  # as fairseq does with the best metric
        _patience().update(rest.get("patience", {}))
    _restore_scaler(_scaler(trainer), rest.get("scaler", {}))
    _restore_masters(trainer, rest.get("masters", []))
    if cfg.reset_lr_scheduler:
        return
    _restore_plateau(trainer, rest.get("plateau"))
    place = extra_state["train_iterator"]
    if place["iterations_in_epoch"] == 0:
        # At the end of an epoch fairseq saves first, and tells the scheduler the loss afterwards.
        trainer.lr_step(place["epoch"] - 1, extra_state["val_loss"])


# Half precision: the weights that are trained are a float32 copy, kept by the optimizer.


def _masters(trainer: Any) -> list[Tensor]:
    masters = getattr(trainer.optimizer, "fp32_params", [])
    return list(masters.values() if isinstance(masters, dict) else masters)


@torch.no_grad()
def _restore_masters(trainer: Any, saved: list[Tensor]) -> None:
    """Restore the float32 weights, where they are those of the model's weights.

    They are not where weights of several checkpoints were averaged.
    """
    masters = _masters(trainer)
    if [master.shape for master in masters] != [weights.shape for weights in saved]:
        return
    for master, weights in zip(masters, saved, strict=True):
        weights = weights.to(master)
        half = trainer.optimizer.fp16_params[0].dtype
        if torch.equal(weights.to(half).to(master), master):
            master.copy_(weights)


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.optimizer, "scaler", None)


def _scaler_state(scaler: Any) -> dict[str, Any]:
    """What decides when the scale of the loss changes: a count of updates and overflows."""
    if isinstance(scaler, torch.amp.GradScaler):
        return scaler.state_dict()
    return {} if scaler is None else {k: v for k, v in vars(scaler).items() if k[0] == "_"}


def _restore_scaler(scaler: Any, state: dict[str, Any]) -> None:
    if isinstance(scaler, torch.amp.GradScaler):
        if state and scaler.is_enabled():
            scaler.load_state_dict(state)
    elif scaler is not None:
        vars(scaler).update(state)


# --lr-scheduler reduce_lr_on_plateau: a rate that depends on all validations so far.


def _plateau(trainer: Any) -> Any:
    scheduler = getattr(trainer.lr_scheduler, "lr_scheduler", None)
    kind = torch.optim.lr_scheduler.ReduceLROnPlateau
    return scheduler if isinstance(scheduler, kind) else None


def _asked_lr(trainer: Any) -> float:
    return float(trainer.cfg.optimization.lr[0])


def _restore_plateau(trainer: Any, saved: dict[str, float] | None) -> None:
    plateau = _plateau(trainer)
    if plateau is None or saved is None:
        return
    plateau.best = saved["best"]
    for name in _PLATEAU[1:]:
        setattr(plateau, name, int(saved[name]))
    if saved["asked"] == _asked_lr(trainer):  # else the user wants another rate
        trainer.optimizer.set_lr(saved["lr"])


def _leave_alone_what_is_over(cfg: Any, trainer: Any, batches: Any) -> None:
    """Say in one line that there is nothing to do, and keep fairseq from one more update.

    Of its limits it looks at ``--max-epoch`` alone before an update.
    """
    why = _over(cfg, trainer, batches)
    if why is None:
        return
    logger.info(f"nothing to do: the run in {os.path.abspath(cfg.save_dir)} is over, {why}")
    command = _command()

    def train(*_: Any) -> tuple[list[None], bool]:
        command.train = train.put_back
        return [None], True

    train.put_back = command.train
    command.train = train


def _over(cfg: Any, trainer: Any, batches: Any) -> str | None:
    limits, hours = trainer.cfg.optimization, trainer._previous_training_time / 3600
    updates, epochs = trainer.get_num_updates(), batches.next_epoch_idx - 1
    runs = _patience().get("num_runs", 0)
    if updates >= (limits.max_update or math.inf):
        return f"with {updates} updates (--max-update {limits.max_update})"
    if epochs >= (limits.max_epoch or math.inf):
        return f"with {epochs} epochs (--max-epoch {limits.max_epoch})"
    if 0 < limits.stop_time_hours < hours:
        return f"with {hours:.1f} hours (--stop-time-hours {limits.stop_time_hours})"
    if 0 < cfg.patience <= runs:
        return f"with no better validation in the last {runs} (--patience {cfg.patience})"
    return None
