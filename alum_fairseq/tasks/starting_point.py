"""The checkpoint that training starts from: which it is, and whether it can be read."""

from __future__ import annotations

import glob
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairseq.file_io import PathManager
from fairseq.utils import split_paths

from alum_fairseq.checkpoints.reading import load_state
from alum_fairseq.errors import UsageError

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "checkpoint_last.pt"


def starting_point(cfg: Any) -> Path | None:
    """The checkpoint that training will start from, by fairseq's rules; None: from scratch.

    A checkpoint that lies elsewhere (fairseq reads remote ones), or in shards, is not looked at.

    Args:
        cfg: options of one of our tasks.

    Raises:
        UsageError: options exclude each other, or a checkpoint that was asked for is missing.
            fairseq would train from scratch.
    """
    restore_file, finetune_from_model = cfg.alum_restore_file, cfg.alum_finetune_from_model
    if finetune_from_model is not None:
        if restore_file != LAST_CHECKPOINT:
            raise UsageError(
                f"--finetune-from-model {finetune_from_model} and --restore-file {restore_file} "
                "exclude each other: the first trains anew from weights, the second goes on"
            )
        for name in ("optimizer", "lr_scheduler", "dataloader", "meters"):
            if cfg[f"alum_reset_{name}"]:
                option = f"--reset-{name.replace('_', '-')}"
                raise UsageError(
                    f"--finetune-from-model resets everything by itself: leave out {option}"
                )
    if restore_file != LAST_CHECKPOINT:
        option, asked_for = "--restore-file", restore_file
    else:
        last = Path(cfg.alum_save_dir, LAST_CHECKPOINT)
        if last.exists():
            return last
        option, asked_for = "--finetune-from-model", finetune_from_model
    if asked_for is None or PathManager.path_requires_pathmanager(asked_for):
        return None
    path = Path(asked_for)
    if path.is_dir():
        raise UsageError(f"{option} {asked_for} is a folder: name a checkpoint in it")
    if not path.is_file():
        if glob.glob(f"{glob.escape(str(path.with_suffix('')))}[-_]*{path.suffix}"):
            return None
        raise UsageError(f"{option} {asked_for} does not exist")
    return path


def load_starting_point(path: Path) -> dict[str, Any]:
    """Read a checkpoint; if it cannot be read, the error names the newest beside it that can."""
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


def _newest_whole_checkpoint(folder: Path) -> Path | None:
    paths = sorted(folder.glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        with suppress(UsageError):
            load_state(path)
            return path
    return None


def warn_of_other_data(state: dict[str, Any], data: str, path: Path) -> None:
    """Say in one line that a checkpoint to go on from was trained on other folders of data."""
    task = (state.get("cfg") or {}).get("task")
    before = task.get("data") if hasattr(task, "get") else getattr(task, "data", None)
    if isinstance(before, str) and _folders(before) != _folders(data):
        logger.warning(
            f"{path} was trained on {before}, and this run goes on from it with {data}; for a run "
            "of its own give another --save-dir"
        )


def _folders(data: str) -> list[str]:
    return [os.path.realpath(folder) for folder in split_paths(data)]
