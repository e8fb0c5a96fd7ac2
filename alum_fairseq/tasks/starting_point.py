"""The checkpoint that training starts from: which it is, and whether it can be read."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairseq.file_io import PathManager
from fairseq.utils import split_paths

from alum_fairseq.checkpoints.reading import load_state
from alum_fairseq.data.record import CLASSES
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


def warn_of_missing_tokens(settings: Mapping[str, Any], cfg: Any, path: Path) -> None:
    """Say in one line that texts will lack a token that a checkpoint was trained with.

    Args:
        settings: of the checkpoint's task; the released models' do not name the tokens.
        cfg: options of a task that has ``--init-token`` and ``--separator-token``.
    """
    pairs = Path(cfg.data, "input1").is_dir()
    for name, usual, needed in (("init_token", 0, True), ("separator_token", 2, pairs)):
        if needed and getattr(cfg, name) is None and settings.get(name, usual) is not None:
            option = f"--{name.replace('_', '-')}"
            where = "before a text" if name == "init_token" else "between two texts"
            logger.warning(
                f"{option} is not given: {path} was trained with one {where}; give {option} {usual}"
            )


def warn_of_another_order(state: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Say in one line that a head that is kept has the classes in another order than the data."""
    task_state = state.get("task_state")
    own = task_state.get(CLASSES) if isinstance(task_state, dict) else None
    if isinstance(own, list) and own != list(names) and {*map(str, own)} == {*names}:
        logger.warning(
            f"{path} has a head of the classes {', '.join(own)}, the data have the order "
            f"{', '.join(names)}: to start from what it has learnt, give alum-prepare --labels "
            f"{' '.join(own)}"
        )


def warn_of_other_options(settings: Mapping[str, Any], cfg: Mapping[str, Any], path: Path) -> None:
    """Say in one line that a run goes on with other options of ours than before.

    Args:
        settings: of the checkpoint's criterion.
        cfg: options of the criterion.
    """
    asked = {name: value for name, value in cfg.items() if name.startswith("alum_")}
    changes = [
        f"--{name.replace('_', '-')} {settings[name]}, now {value}"
        for name, value in asked.items()
        if str(settings.get(name, value)) != str(value)
    ]
    if changes:
        logger.warning(f"{path} was trained with {'; '.join(changes)}")


def _folders(data: str) -> list[str]:
    return [os.path.realpath(folder) for folder in split_paths(data)]
