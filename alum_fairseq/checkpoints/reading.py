"""Checkpoints of fairseq, from here or from strangers, read as data alone."""

from __future__ import annotations

import logging
import pickle
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from alum_fairseq.errors import UsageError, is_number, one_line
from alum_fairseq.files import existing_file
from alum_fairseq.models.token_head import TOKEN_HEAD

# How fairseq names the weights of a RoBERTa, and its classification heads.
ENCODER = "encoder.sentence_encoder."
HEADS = "classification_heads."
DEFAULT_HEAD = "sentence_classification_head"

# How torch says that a pickle asks for a class or a function that is none of plain data.
_UNSAFE = re.compile(
    "(?i)unsupported (global|class)|not an allowed global|call reduce|can only (create|build)"
)


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory: weights and plain values, never code.

    Both of torch's formats are read.

    Raises:
        UsageError: the file cannot be read, is cut short or no checkpoint of a model, or it
            holds objects whose loading could run code, or options that would read this machine's
            environment.
    """
    existing_file(path)
    try:
        # Not mapped into memory: fairseq writes checkpoint_last.pt in place, and to read a map of a
        # file that becomes shorter kills the process.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # torch and pickle raise whatever broken bytes lead them to
        if isinstance(error, pickle.UnpicklingError) and _UNSAFE.search(str(error)):
            raise UsageError(
                f"{path} holds objects other than weights, whose loading could run code: it is "
                "not loaded"
            ) from None
        raise UsageError(f"{path} is no checkpoint, or was cut short") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UsageError(f"{path} is no checkpoint of fairseq: it has no 'model'")
    for name, weight in state["model"].items():
        if not isinstance(name, str) or not _is_plain(weight):
            raise UsageError(f"{path}: {name} is no plain tensor of numbers: it is not loaded")
    _refuse_interpolations((state.get("args"), state.get("cfg")), path)
    return state


def _is_plain(value: Any) -> bool:
    """Whether something is a tensor that lies in memory number by number, as weights do.

    A file may hold others: without any memory, or with a hundred bytes for a billion numbers.
    """
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def config_of(state: dict[str, Any], path: Path, **overrides: Any) -> DictConfig:
    """fairseq's configuration that a checkpoint was trained by, but for options to override.

    Raises:
        UsageError: there is none, or it is not one of this fairseq.
    """
    try:
        if state.get("args") is not None:
            arguments = Namespace(**{**vars(state["args"]), **overrides})
            with silent("fairseq.dataclass.utils"):  # it lists all options beside its exception
                return convert_namespace_to_omegaconf(arguments)
        if state.get("cfg") is not None:
            cfg = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
            overwrite_args_by_name(cfg, overrides)
            _ = cfg.task, cfg.model
            return cfg
    except Exception as error:  # strangers' values, anywhere inside fairseq, hydra and omegaconf
        raise UsageError(
            f"{path}: its options are not those of this fairseq: {one_line(error)}"
        ) from None
    raise UsageError(f"{path} is no checkpoint of fairseq: it has neither 'cfg' nor 'args'")


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Let a logger say nothing for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_interpolations(options: Any, path: Path) -> None:
    """Make sure that no option is like ``${oc.env:HOME}``; fairseq saves what these stand for."""
    rest, seen = [options], set()
    while rest:
        value = rest.pop()
        if id(value) in seen:  # a file may hold what holds itself
            continue
        seen.add(id(value))
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            rest += value
        elif isinstance(value, str) and "${" in value:
            raise UsageError(
                f"{path}: one of its options is {value!r:.100}, which would read from this "
                "machine: it is not loaded"
            )


def training_of(state: Mapping[str, Any]) -> dict[str, float] | None:
    """The ``seconds`` and ``updates`` of training, where fairseq noted them in a checkpoint."""
    extra, history = state.get("extra_state"), state.get("optimizer_history")
    try:
        seconds, updates = extra["previous_training_time"], history[-1]["num_updates"]
    except (TypeError, KeyError, IndexError):
        return None
    known = is_number(seconds) and seconds > 0 and is_number(updates) and updates > 0
    return {"seconds": seconds, "updates": updates} if known else None


def heads_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The classification heads that a checkpoint has weights of, and how many outputs each has."""
    names = sorted({name.split(".")[1] for name in weights if name.startswith(HEADS)})
    outputs = [weights.get(f"{HEADS}{name}.out_proj.weight") for name in names]
    if (weight := weights.get(f"{TOKEN_HEAD}.weight")) is not None:
        names, outputs = [*names, TOKEN_HEAD], [*outputs, weight]
    sizes = [0 if weight is None or not weight.dim() else len(weight) for weight in outputs]
    return dict(zip(names, sizes, strict=True))


def settings_of(state: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint says of its training, word for word, defaults not filled in.

    Returns:
        The options of the model; and those of task and criterion, the task's name under ``task``.

    Raises:
        UsageError: it says nothing.
    """
    args, cfg = state.get("args"), state.get("cfg")
    if isinstance(args, Namespace):
        return vars(args), {"task": None, **vars(args)}
    if not isinstance(cfg, dict):
        raise UsageError(f"{path} is no checkpoint of fairseq: it has neither 'cfg' nor 'args'")
    model, task, criterion = (_entries(cfg.get(name)) for name in ("model", "task", "criterion"))
    return model, {**criterion, **task, "task": task.get("_name")}


def _entries(group: Any) -> dict[str, Any]:
    if isinstance(group, Namespace):
        return vars(group)
    return group if isinstance(group, dict) else {}
