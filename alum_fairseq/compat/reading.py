"""Checkpoints and archives are read as data: old ones load, and no code in them runs."""

from __future__ import annotations

import argparse
import ast
import pickle
import sys
import tarfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from alum_fairseq.errors import UsageError


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

    def broadcast(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
        if utils.use_xla():
            return broadcast_slow(obj, src_rank, group, dist_device)
        box = [obj]
        torch.distributed.broadcast_object_list(box, src_rank, group, dist_device)
        return box[0]

    utils._broadcast_object_slow = broadcast
