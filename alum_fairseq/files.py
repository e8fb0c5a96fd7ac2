"""Files that come into being whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alum_fairseq.errors import UsageError

_PROBE = 1 << 20  # bytes that a disk has room for, unless it is full
# Why a file that is there cannot be opened; what else fails is not for the user to mend.
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def naming_closed_paths() -> Iterator[None]:
    """Say in one line which file or folder the system does not let this process use.

    Raises:
        UsageError: there is one; the message names it, and the system's reason.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno not in _CLOSED:
            raise
        raise UsageError(
            f"{error.filename} cannot be opened: {error.strerror}; see to the rights of the file "
            "and its folders, or name another"
        ) from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of ``path`` when the block ends well.

    What is no plain file, such as ``/dev/null`` or a pipe, is written to as it is.

    Raises:
        UsageError: it is a folder, its folder cannot be written to, or the disk is full.
    """
    path = path.resolve()  # not the link, but what it leads to
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file")
    if path.exists() and not path.is_file():
        yield path
        return
    aside = Path(_aside(path, tempfile.mkstemp))
    try:
        with blaming_the_disk(path):
            yield aside
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``path`` when the block ends well.

    Raises:
        UsageError: there is something at ``path`` already, it cannot be written to, or the disk is
            full.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists: remove it, or name another folder")
    aside = Path(_aside(path, tempfile.mkdtemp))
    try:
        with blaming_the_disk(path):
            yield aside
            if path.exists():
                path.rmdir()
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def blaming_the_disk(path: Path) -> Iterator[None]:
    """Where something fails while a path is written, see whether its disk is to blame.

    Libraries say so in many ways: torch that a position is not the one expected.

    Raises:
        UsageError: no more can be written there.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception:
        try:
            write_a_little(path.parent)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        raise


def write_a_little(folder: Path) -> None:
    """Write a nameless file into a folder, to see whether its disk has room for any.

    Raises:
        OSError: it has not, or the folder is closed.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(_PROBE))


def _aside(path: Path, make: object) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
        aside = made if isinstance(made, str) else made[1]
        if not isinstance(made, str):
            os.close(made[0])
        # mkstemp and mkdtemp keep everyone else out; what the user asked for is like all else.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(aside, (0o777 if isinstance(made, str) else 0o666) & ~mask)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    return aside


def existing_file(path: Path) -> Path:
    """The path, if a file is there.

    Raises:
        UsageError: there is none.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {what}")
    return path


def existing_folder(path: Path) -> Path:
    """The path, if a folder is there.

    Raises:
        UsageError: there is none.
    """
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}")
    return path
