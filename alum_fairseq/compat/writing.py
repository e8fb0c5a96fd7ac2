"""A checkpoint has its name only when all of it is on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alum_fairseq.errors import UsageError
from alum_fairseq.files import check_writable, reporting_full_disk


def name_the_folder_of_checkpoints() -> None:
    """Say in one line that checkpoints cannot be written, instead of with a traceback.

    fairseq looks before it sets up task and criterion, so that they cannot. Can go when it says
    which option is wrong.
    """
    from fairseq import checkpoint_utils

    verify = checkpoint_utils.verify_checkpoint_directory

    def verify_checkpoint_directory(save_dir: str) -> None:
        try:
            verify(save_dir)  # of an empty file, for which a full disk has room
            check_writable(Path(save_dir))
        except OSError as error:
            raise UsageError(
                f"--save-dir {save_dir} is no folder that can be written to: {error.strerror}"
            ) from None

    checkpoint_utils.verify_checkpoint_directory = verify_checkpoint_directory


def write_checkpoints_whole() -> None:
    """Let a checkpoint have its name only when all of it is on the disk.

    fairseq 0.12 writes a checkpoint aside and renames it, but then copies it over the last
    ``checkpoint_last.pt`` and ``checkpoint_best.pt`` in place: a process killed amid that has
    nothing left to go on from. And a machine that loses power may have made the rename, but not
    written the bytes. Files on remote storage are left to fairseq. Can go when fairseq copies
    aside, too, and calls ``fsync``.
    """
    from fairseq.file_io import PathManager

    copy, rename = PathManager.copy, PathManager.rename

    def copy_aside(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not overwrite or not PathManager.supports_rename(dst_path):
            return copy(src_path, dst_path, overwrite)
        target = os.path.realpath(dst_path)  # a link stays one
        with _whole_or_not_at_all(target) as aside:
            if not copy(src_path, aside, overwrite=True):
                return False
            PathManager.rename(aside, target)
        return True

    def rename_written(src: str, dst: str) -> None:
        with open(src, "rb+") as file:
            os.fsync(file.fileno())
        rename(src, dst)

    PathManager.copy = staticmethod(copy_aside)
    PathManager.rename = staticmethod(rename_written)


@contextmanager
def _whole_or_not_at_all(target: str) -> Iterator[str]:
    """The name to write to before a file is renamed, which is gone if that fails.

    It is fairseq's, so that what a kill leaves is written over.

    Raises:
        UsageError: the disk is full.
    """
    aside = target + ".tmp"
    try:
        with reporting_full_disk(Path(target)):
            yield aside
    except Exception:
        Path(aside).unlink(missing_ok=True)
        raise


# To write a checkpoint: how often, and after how many seconds, as fairseq.
_ATTEMPTS, _PAUSE = 3, 2.5


def survive_a_full_disk() -> None:
    """Let a checkpoint that the disk has no room for leave those before it as they are.

    fairseq 0.12 tries three times to write it, each time behind what the last try left in the
    file: if there was room at last, the last good checkpoint was replaced by one that nobody can
    read. And where there is none, a traceback out of torch told of positions in a file. Can go when
    fairseq goes back to the beginning.
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    persistent_save = checkpoint_utils.torch_persistent_save

    def save_from_the_beginning(obj: Any, file: Any) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    file.seek(0)
                    file.truncate()
                torch.save(obj, file)
                return
            except Exception:
                if attempt == _ATTEMPTS - 1 or not file.seekable():
                    raise
                time.sleep(_PAUSE)

    def save_or_say_why(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):
            persistent_save(obj, filename, async_write)
            return
        with _whole_or_not_at_all(filename):
            persistent_save(obj, filename)

    checkpoint_utils._torch_persistent_save = save_from_the_beginning
    checkpoint_utils.torch_persistent_save = save_or_say_why
