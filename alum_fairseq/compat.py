"""What fairseq needs on today's Python and torch. Each fix says which version needs it."""

from __future__ import annotations

import argparse
import ast
import atexit
import functools
import importlib.util
import logging
import os
import pickle
import queue
import re
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from alum_fairseq.errors import UsageError
from alum_fairseq.files import check_writable, reporting_full_disk

# Chatter of fairseq's start-up and inner loop about its own use of hydra and torch. Nothing that a
# user of fairseq can act on; about 20 lines before the first line of their log.
_CHATTER = (
    # hydra-core 1.2 and later, until fairseq leaves hydra.experimental and names a version_base.
    (UserWarning, r"(?s)\s*hydra\.experimental\.\w+\(\) is no longer experimental"),
    (UserWarning, r"(?s)\s*The version_base parameter is not specified"),
    (UserWarning, r"(?s).*Usage of deprecated keyword in package header '# @package _group_'"),
    (UserWarning, r"(?s)\s*'config' is validated against ConfigStore schema with the same name"),
    (UserWarning, r"(?s)\s*The strict flag in the compose API is deprecated"),
    # torch 2.4 and later, until fairseq calls torch.amp.
    (FutureWarning, r"(?s)`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated"),
    # torch 2.0 and later, on machines without a GPU: fairseq always asks for pinned memory.
    (UserWarning, r"(?s)'pin_memory' argument is set as true but no accelerator is found"),
)


# Before it, torch runs whatever code stands in a checkpoint, unless each reader says otherwise;
# fairseq's do not.
_LEAST_TORCH = (2, 6)


def require_fairseq() -> None:
    """Import fairseq.

    Raises:
        ImportError: it cannot be imported, or torch is too old; the message says which one to
            install.
    """
    torch_version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if torch_version < _LEAST_TORCH:
        raise ImportError(
            f"alum_fairseq needs torch 2.6 or later, and finds {torch.__version__}, which runs the "
            "code that a stranger's checkpoint may hold: pip install 'torch>=2.6'."
        )
    # It says at every import that tensorboardX is not there, which nothing of ours needs.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    try:
        import fairseq  # noqa: F401
    except Exception as error:  # Python 3.11+: fairseq 0.12.2 fails with a ValueError
        if importlib.util.find_spec("fairseq") is None:
            problem = "is not installed"
        else:
            problem = f"cannot be imported ({type(error).__name__}: {error})"
        raise ImportError(f"alum_fairseq needs fairseq, which {problem}. {_which()}") from error


def _which() -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info >= (3, 11):
        return (
            f"For Python {version} install fairseq-fixed 0.12.3.1 (fairseq 0.12.2 cannot be "
            "imported on 3.11 and later): 'bash scripts/setup.sh' in a clone of this project, or "
            "'pip install torch numpy cython setuptools wheel' and then "
            "'pip install --no-build-isolation fairseq-fixed==0.12.3.1'."
        )
    return (
        f"For Python {version} install fairseq 0.12.2: 'pip install \"pip<24.1\"' (later ones "
        "refuse its omegaconf) and then 'pip install fairseq==0.12.2'."
    )


def apply() -> None:
    """Apply every fix. Safe to call more than once."""
    load_checkpoints_with_namespace()
    load_checkpoints_with_numpy_numbers()
    hand_checkpoints_to_all_ranks()
    evaluate_literals_alone()
    extract_archives_into_their_folder()
    name_the_folder_of_checkpoints()
    restore_numpy_long()
    write_checkpoints_whole()
    survive_a_full_disk()
    find_nan_in_dictionaries()
    stop_abandoned_loaders()
    stop_loaders_at_exit()
    silence_chatter()


def load_checkpoints_with_namespace() -> None:
    """Let checkpoints that hold an ``argparse.Namespace`` load under ``weights_only=True``.

    torch 2.6 and later load weights only, unless told otherwise; fairseq's checkpoints, the
    released ones above all, hold their options as a Namespace. That one class is a plain record
    of attributes. The protection against code in checkpoints stays on. Can go when fairseq
    allow-lists it itself.
    """
    torch.serialization.add_safe_globals([argparse.Namespace])


def load_checkpoints_with_numpy_numbers() -> None:
    """Let checkpoints load whose best metric is a number of numpy, as F1, MCC and correlation are.

    fairseq saves the value of ``--best-checkpoint-metric`` as it is; with torch 2.6 and later
    neither resuming nor ``from_pretrained`` could read it. What is allowed is a ``float64``, which
    is made here: numpy's own functions would make any type of what a stranger's file tells them.
    Can go when fairseq saves it as a float.
    """
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]  # numpy 1, 2
    torch.serialization.add_safe_globals(
        [(_Float64, "numpy.dtype"), *((_float64, name) for name in names)]
    )


class _Float64:
    """What stands for numpy's ``dtype("f8")`` while a checkpoint is read, and for no other.

    Raises:
        UnpicklingError: the checkpoint asks for another type.
    """

    def __init__(self, code: str, *_: Any) -> None:
        if code != "f8":
            raise pickle.UnpicklingError(f"numpy's {code!r} is not an allowed global")
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take numpy's state of a ``dtype``, of which the order of the bytes matters."""
        self.order = {"<": "<", ">": ">"}[state[1]]


def _float64(dtype: _Float64, content: bytes) -> np.float64:
    """What numpy calls ``scalar``, for eight bytes of that one type."""
    [number] = np.frombuffer(content, f"{dtype.order}f8")
    return np.float64(number)


# What options that are written as Python may consist of.
_LITERAL = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Load, ast.UnaryOp, ast.USub),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div),
)


def evaluate_literals_alone() -> None:
    """Let fairseq compute options like ``[(512, 3)] * 20``, but run no code that stands in them.

    It gives such options to ``eval``, those of a checkpoint, too. A stranger's could run anything:
    ``encoder_xformers_att_config`` does in every RoBERTa, others in convolutional models, so with
    ``from_pretrained``. Every version of fairseq; can go when none of its files calls ``eval``.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("fairseq.") and not hasattr(module, "eval"):
            module.eval = evaluate_literal  # found before Python's own


def evaluate_literal(text: str) -> Any:
    """The value of numbers, texts, lists, tuples and dictionaries, with ``+ - * /`` between them.

    Raises:
        UsageError: the text is anything else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        if all(isinstance(node, _LITERAL) for node in ast.walk(tree)):
            return eval(compile(tree, "<option>", "eval"), {"__builtins__": {}})
    except Exception:  # of the parser, and of nonsense such as [] - 1
        pass
    raise UsageError(
        f"an option is {text!r:.200}: it must be numbers, texts or lists of them, and no other code"
    )


def extract_archives_into_their_folder() -> None:
    """Keep an archive that ``from_pretrained`` unpacks from writing anywhere else.

    ``tarfile`` of Python before 3.14 follows names like ``../../.bashrc`` unless it is given the
    filter ``data``, which fairseq does not do. Can go with Python 3.13.
    """
    from fairseq import file_utils

    if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later
        file_utils.tarfile = SimpleNamespace(open=_SafeArchive.open)


def name_the_folder_of_checkpoints() -> None:
    """Say in one line that checkpoints cannot be written, instead of with a traceback.

    fairseq looks before it sets up task and criterion, so that they cannot. Can go when it says
    which option is wrong.
    """
    from fairseq import checkpoint_utils

    verify = checkpoint_utils.verify_checkpoint_directory
    if getattr(verify, "__wrapped__", None) is not None:
        return

    @functools.wraps(verify)
    def verify_checkpoint_directory(save_dir: str) -> None:
        try:
            verify(save_dir)  # of an empty file, for which a full disk has room
            check_writable(Path(save_dir))
        except OSError as error:
            raise UsageError(
                f"--save-dir {save_dir} is no folder that can be written to: {error.strerror}"
            ) from None

    checkpoint_utils.verify_checkpoint_directory = verify_checkpoint_directory


class _SafeArchive(tarfile.TarFile):
    extraction_filter = staticmethod(getattr(tarfile, "data_filter", None))


def hand_checkpoints_to_all_ranks() -> None:
    """Let a run of several processes start from a checkpoint.

    The first rank reads it, under ``weights_only=True``, and sends it to the others, who with torch
    2.6 and later refuse the options in it: by then they are a ``DictConfig``. What comes from the
    run's own first rank is no stranger's, and torch's own function for it says the same. Can go
    when fairseq 0.12's ``broadcast_object`` uses that, or says ``weights_only=False``.
    """
    from fairseq.distributed import utils

    broadcast_slow = utils._broadcast_object_slow
    if broadcast_slow.__module__ == __name__:
        return

    def broadcast(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
        if utils.use_xla():
            return broadcast_slow(obj, src_rank, group, dist_device)
        box = [obj]
        torch.distributed.broadcast_object_list(box, src_rank, group, dist_device)
        return box[0]

    utils._broadcast_object_slow = broadcast


def restore_numpy_long() -> None:
    """Give numpy back ``np.compat.long``, which ``--sample-break-mode eos`` asks for.

    numpy 2.0 and later have no ``np.compat``. Can go when fairseq says ``int``.
    """
    if not hasattr(np, "compat"):
        np.compat = SimpleNamespace(long=int)


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
    if copy.__module__ == __name__:
        return

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
    if persistent_save.__module__ == __name__:
        return

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


def find_nan_in_dictionaries() -> None:
    """Let fairseq say in which module numbers went wrong, before it stops over them.

    To look at gradients it hooks all modules in a way that torch refuses to modules that return
    dictionaries without a tensor, such as RoBERTa's encoder: what the user saw was a bare
    ``StopIteration``. The innermost modules, which return tensors, are enough. Can go when
    fairseq 0.12's NanDetector uses full backward hooks.
    """
    from fairseq.nan_detector import NanDetector

    if NanDetector.add_hooks.__module__ == __name__:
        return

    def add_hooks(self: NanDetector, module: torch.nn.Module) -> None:
        if self.forward:
            self.fhooks.append(module.register_forward_hook(self.fhook_fn))
        if self.backward and not any(module.children()):
            self.bhooks.append(module.register_backward_hook(self.bhook_fn))

    NanDetector.add_hooks = add_hooks


def stop_abandoned_loaders() -> None:
    """Let fairseq's thread that loads batches ahead end when nobody can ask it for more.

    Else every validation that ``--max-valid-steps`` cuts short leaves one behind, with the batches
    that it has loaded. Can go when fairseq 0.12's BufferedIterator does it.
    """
    from fairseq.data.iterators import BufferedIterator

    BufferedIterator.__del__ = _abandon


def _abandon(batches: Any) -> None:
    consumer = getattr(batches, "_consumer", None)
    # Garbage may be collected anywhere, even where this thread holds the lock already.
    if consumer is not None and consumer._queue.mutex.acquire(blocking=False):
        consumer._max_len = 0  # it ends after the batch that it is at
        consumer._queue.queue.clear()
        consumer._queue.maxsize = sys.maxsize  # it may be waiting for room
        consumer._queue.not_full.notify_all()
        consumer._queue.mutex.release()


def stop_loaders_at_exit() -> None:
    """Let fairseq's thread that loads batches ahead end before the interpreter does.

    It is a daemon, and Python before 3.14 ends daemons where they are: inside torch's C++ that
    aborts the whole process ("terminate called without an active exception", exit status 134),
    now and then, after training is done and saved. Can go when fairseq stops its thread.
    """
    atexit.unregister(_stop_loaders)
    atexit.register(_stop_loaders)


def _stop_loaders() -> None:
    from fairseq.data.iterators import BackgroundConsumer

    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0  # it ends after the batch that it is at
            while thread.is_alive():
                try:  # it may be waiting for room
                    thread._queue.get(timeout=0.05)
                except queue.Empty:
                    thread.join(0.05)


def silence_chatter() -> None:
    """Filter the deprecation warnings that fairseq's own code causes, and no others."""
    for category, message in _CHATTER:
        warnings.filterwarnings("ignore", message, category)
