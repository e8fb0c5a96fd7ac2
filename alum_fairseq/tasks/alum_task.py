"""What all ALUM tasks share: the update number for the criterion, and checks before training."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import glob
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.file_io import PathManager
from omegaconf import II
from torch import distributed

from alum_fairseq.checkpoints import check_fits, check_resumable, load_state
from alum_fairseq.encoder_tap import check_layer, check_low_memory
from alum_fairseq.errors import UsageError

LAST_CHECKPOINT = "checkpoint_last.pt"


@dataclass
class AlumTaskConfig(FairseqDataclass):
    """Not options, but what other options of fairseq resolve to; tasks see them no other way."""

    alum_save_dir: str = II("checkpoint.save_dir")
    alum_restore_file: str = II("checkpoint.restore_file")
    alum_finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    # Not bool: fairseq-train would make bool("${...}") of it.
    alum_reset_optimizer: Any = II("checkpoint.reset_optimizer")  # noqa: RUF009
    alum_ddp_backend: str = II("distributed_training.ddp_backend")


class AlumTask:
    """Mixin for a fairseq task. Put it before the task among the bases.

    Its criterion can follow a schedule: fairseq tells the number of the update to ``train_step`` of
    the task, never to the criterion. And what training starts from is looked at before it starts.
    """

    passes_update_number = True
    cfg: Any

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, and make sure that the checkpoint to start from fits it.

        Raises:
            UsageError: there is no such checkpoint, it cannot be read, or it does not fit.
        """
        model = super().build_model(cfg, from_checkpoint)
        # To check the criterion against, which is built next.
        self._built_model, self._trained_by, self._ddp_backend = model, None, None
        if not from_checkpoint:
            self._ddp_backend = str(self.cfg.alum_ddp_backend)
            self._check_starting_point(model)
        return model

    def _check_starting_point(self, model: Any) -> None:
        path = starting_point(
            self.cfg.alum_save_dir, self.cfg.alum_restore_file, self.cfg.alum_finetune_from_model
        )
        if path is None or not _reads_checkpoints():
            return
        state = _load_starting_point(path)
        check_resumable(state, path)
        check_fits(state, model, path)
        fresh = self.cfg.alum_finetune_from_model is not None and path == Path(
            self.cfg.alum_finetune_from_model
        )
        if state.get("last_optimizer_state") is not None and not (
            fresh or self.cfg.alum_reset_optimizer
        ):
            self._trained_by = path, state["optimizer_history"][-1].get("criterion_name")

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion; make sure that it fits the model and the checkpoint.

        Raises:
            UsageError: the criterion is one of ours, but the model is no RoBERTa, has no layer of
                the number that was asked for, or is to be sharded; or the checkpoint's optimizer
                belongs to training by another criterion.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        model = getattr(self, "_built_model", None)
        if hasattr(criterion, "alum") and model is not None:
            check_layer(model, criterion.alum.layer, criterion.alum.step_layers)
            if criterion.alum.memory == "low":
                check_low_memory(model)
            if self._ddp_backend == "fully_sharded":
                raise UsageError(
                    "--ddp-backend is fully_sharded: the adversary re-runs parts of the model, for "
                    "which sharded weights are not gathered; choose pytorch_ddp or legacy_ddp"
                )
        if getattr(self, "_trained_by", None) is not None:
            path, name = self._trained_by
            if name != type(criterion).__name__:
                raise UsageError(
                    f"{path} comes from training with the criterion {name}, not "
                    f"{type(criterion).__name__}, whose optimizer cannot go on from it: give "
                    "--finetune-from-model instead of --restore-file, or add --reset-optimizer "
                    "--reset-dataloader --reset-meters"
                )
        return criterion

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As fairseq's, after the criterion was told the number of the update."""
        if hasattr(criterion, "set_num_updates"):
            criterion.set_num_updates(update_num)
        return super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
        )


def _load_starting_point(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        UsageError: it cannot be read. The message names the newest one beside it that can.
    """
    try:
        return load_state(path)
    except UsageError as error:
        whole = _newest_whole_checkpoint(path.parent)
        if whole is None:
            raise
        raise UsageError(
            f"{error}. The newest whole one beside it is {whole.name}: to go on from there, copy "
            f"it to {path}"
        ) from None


def _newest_whole_checkpoint(folder: Path) -> Optional[Path]:
    paths = sorted(folder.glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        with suppress(UsageError):
            load_state(path)
            return path
    return None


def _reads_checkpoints() -> bool:
    """Whether this process is the one that reads a checkpoint, and broadcasts it to the others."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def starting_point(
    save_dir: str, restore_file: str, finetune_from_model: Optional[str]
) -> Optional[Path]:
    """The checkpoint that training will start from, by fairseq's rules; None: from scratch.

    A checkpoint that lies elsewhere (fairseq reads remote ones), or in shards, is not looked at.

    Raises:
        UsageError: a checkpoint that was asked for is missing. fairseq would train from scratch.
    """
    if restore_file != LAST_CHECKPOINT:
        option, asked_for = "--restore-file", restore_file
    else:
        last = Path(save_dir, LAST_CHECKPOINT)
        if last.exists():
            return last
        option, asked_for = "--finetune-from-model", finetune_from_model
    if asked_for is None or PathManager.path_requires_pathmanager(asked_for):
        return None
    path = Path(asked_for)
    if not path.is_file():
        if glob.glob(f"{glob.escape(str(path.with_suffix('')))}[-_]*{path.suffix}"):
            return None
        raise UsageError(f"{option} {asked_for} does not exist")
    return path
