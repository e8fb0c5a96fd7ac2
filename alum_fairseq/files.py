"""Files and folders that appear complete or not at all, and clear errors for those that cannot."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from alum_fairseq.errors import UsageError

STDIN = Path("-")
_PROBE = 1 << 20  # bytes; a full disk may still have room for an empty file
# Reasons for which the system refuses to open an existing file, and which the user can fix.
_ACCESS_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def reporting_access_errors() -> Iterator[None]:
    """Turn the system's refusal to open a file or folder into a one-line error.

    Raises:
        UsageError: the system refused; the message names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno not in _ACCESS_ERRORS:
            raise
        raise UsageError(
            f"{error.filename} cannot be opened: {error.strerror}; check the permissions of the "
            "file and its folders, or give another path"
        ) from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` if the block ends without an error.

    Anything but a regular file, such as ``/dev/null`` or a pipe, is written to directly.

    Raises:
        UsageError: ``path`` is a folder, its folder is not writable, or the disk is full.
    """
    path = path.resolve()  # write through a link, do not replace it
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file")
    if path.exists() and not path.is_file():
        yield path
        return
    with _temporary_path_beside(path) as temporary:
        temporary.touch()
        yield temporary
        os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder; it becomes ``path`` if the block ends without an error.

    An empty folder that is there stays, and gets the contents: something may be mounted on it, or
    it may be a shell's current one.

    Raises:
        UsageError: ``path`` exists and is not empty, it cannot be written, or the disk is full.
    """
    path = new_folder(path).resolve()
    exists = path.is_dir()
    with _temporary_path_beside(path / path.name if exists else path) as temporary:
        temporary.mkdir()
        yield temporary
        if not exists:
            temporary.rename(path)
        else:
            for child in temporary.iterdir():
                child.rename(path / child.name)


@contextmanager
def _temporary_path_beside(path: Path) -> Iterator[Path]:
    """A path on the same file system as ``path``, in a folder that is removed afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(
            prefix=f".{path.name}.",
            suffix=".unfinished",
            dir=path.parent,
            ignore_cleanup_errors=True,
        )
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    with folder as name, reporting_full_disk(path):
        yield Path(name) / path.name


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """If writing ``path`` fails, check whether the disk is full, and say so.

    Libraries report a full disk in many ways: torch, for one, complains of a file position.

    Raises:
        UsageError: nothing more can be written there.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception:
        try:
            check_writable(path.parent)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        raise


def check_writable(folder: Path) -> None:
    """Write an unnamed temporary file of 1 MiB into a folder; an OSError if that fails."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(_PROBE))


def shown(path: Path) -> str:
    """The path, as messages name it."""
    return "standard input" if path == STDIN else str(path)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file or of :data:`STDIN`; a UsageError if it cannot be opened."""
    if path == STDIN:
        yield sys.stdin.buffer
        return
    if not path.is_fifo():  # such as the shell's <(command)
        existing_file(path)
    with reporting_access_errors():
        stream = path.open("rb")
    with stream:
        yield stream


def existing_file(path: Path) -> Path:
    """The path; a UsageError unless it is a file."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {what}")
    return path


def existing_folder(path: Path) -> Path:
    """The path; a UsageError unless it is a folder."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}")
    return path


def new_file(path: Path) -> Path:
    """The path; a UsageError if something is there: no command overwrites what exists.

    An empty file counts as nothing, and so does what is no file, such as ``/dev/null``.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file")
    if path.is_file() and path.stat().st_size:
        raise UsageError(f"{path} exists: remove it, or name another file")
    return path


def new_folder(path: Path) -> Path:
    """The path; a UsageError if something is there, but for an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists: remove it, or name another folder")
    return path
