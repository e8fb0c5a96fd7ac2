"""A run that goes on from a checkpoint of other data says so."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from fairseq.utils import split_paths

logger = logging.getLogger(__name__)


def warn_of_other_data(state: dict[str, Any], data: str, path: Path) -> None:
    """Say in one line that a checkpoint to go on from was trained on other data.

    Args:
        state: the checkpoint, as read.
        data: the folder or folders of the run at hand.
        path: of the checkpoint.
    """
    task = (state.get("cfg") or {}).get("task")
    before = task.get("data") if hasattr(task, "get") else getattr(task, "data", None)
    if isinstance(before, str) and _folders(before) != _folders(data):
        logger.warning(
            f"{path} was trained on {before}, and this run goes on from it with {data}; for a run "
            "of its own give another --save-dir"
        )


def _folders(data: str) -> list[str]:
    return [os.path.realpath(folder) for folder in split_paths(data)]
