"""Checkpoints of fairseq, from here or from strangers: read as data alone, and checked."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory: weights and plain values, never code.

    Both of torch's formats are read; the newer one is mapped into memory, not copied.

    Raises:
        UsageError: the file is missing, cut short, no checkpoint of a model, or it holds
            objects whose loading could run code.
    """
    existing_file(path)
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise UsageError(
                f"{path} holds objects other than weights, whose loading could run code: it is "
                "not loaded"
            ) from None
        raise UsageError(f"{path} is no checkpoint, or was cut short") from None
    except Exception:  # torch and pickle raise whatever broken bytes lead them to
        raise UsageError(f"{path} is no checkpoint, or was cut short") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UsageError(f"{path} is no checkpoint of fairseq: it has no 'model'")
    return state


def check_fits(state: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Make sure that fairseq can load a checkpoint into a model.

    Args:
        state: what :func:`load_state` read.
        model: a model of fairseq, built for the data and the options at hand.
        path: where the state came from, for the message.

    Raises:
        UsageError: it cannot; the message names what differs, and the remedy.
    """
    if "optimizer_history" not in state or "extra_state" not in state:
        raise UsageError(
            f"{path} holds weights but no 'optimizer_history' and 'extra_state': fairseq cannot "
            "start from it. alum-convert from-hf writes checkpoints that it can start from"
        )
    found = upgraded_weights(state, model)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for check in (_check_vocabulary, _check_depth, _check_positions, _check_width):
        check(found, expected, path)
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} has no place in the model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(
            f"{path} does not fit the model: {min(problems)}{more}. Choose the --arch and the "
            "options of the model that it was trained with"
        )


def upgraded_weights(state: dict[str, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's weights, under the names that the model has for them today."""
    weights = dict(state["model"])
    upgrading = logging.getLogger("fairseq.models.roberta.model")
    level = upgrading.level
    upgrading.setLevel(logging.ERROR)  # fairseq says it all once more when it loads the checkpoint
    try:
        model.upgrade_state_dict_named(weights, "")
    finally:
        upgrading.setLevel(level)
    return {name: tuple(weight.shape) for name, weight in weights.items()}


_ENCODER = "encoder.sentence_encoder."
Shapes = dict[str, tuple[int, ...]]


def _check_vocabulary(found: Shapes, expected: Shapes, path: Path) -> None:
    name = f"{_ENCODER}embed_tokens.weight"
    if name not in found or name not in expected or found[name][0] == expected[name][0]:
        return
    has, wanted = found[name][0], expected[name][0]
    why = " (one less: it has no <mask>)" if has == wanted - 1 else ""
    raise UsageError(
        f"{path} has a vocabulary of {has:,} symbols{why}, the data one of {wanted:,} (dict.txt, "
        "4 special symbols and <mask>): make the data with the dict.txt that belongs to the "
        "checkpoint"
    )


def _check_depth(found: Shapes, expected: Shapes, path: Path) -> None:
    layer = re.compile(re.escape(_ENCODER) + r"layers\.(\d+)\.")

    def depth(names: Iterable[str]) -> int:
        return len({match[1] for match in map(layer.match, names) if match})

    has, wanted = depth(found), depth(expected)
    if has != wanted:
        raise UsageError(
            f"{path} has {has} layers, the model {wanted}: choose its --arch, or --encoder-layers "
            f"{has}"
        )


def _check_positions(found: Shapes, expected: Shapes, path: Path) -> None:
    name = f"{_ENCODER}embed_positions.weight"
    if name not in found or name not in expected or found[name][0] == expected[name][0]:
        return
    # fairseq's positions begin after the padding symbol's index, 1.
    has, wanted = found[name][0] - 2, expected[name][0] - 2
    raise UsageError(f"{path} has {has} positions, the model {wanted}: give --max-positions {has}")


def _check_width(found: Shapes, expected: Shapes, path: Path) -> None:
    for name, option in (
        (f"{_ENCODER}embed_tokens.weight", "--encoder-embed-dim"),
        (f"{_ENCODER}layers.0.fc1.bias", "--encoder-ffn-embed-dim"),
    ):
        if name in found and name in expected and found[name][-1] != expected[name][-1]:
            has, wanted = found[name][-1], expected[name][-1]
            raise UsageError(
                f"{path} has a width of {has}, the model {wanted}: choose its --arch, or "
                f"{option} {has}"
            )
