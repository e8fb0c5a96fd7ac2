"""A model's folder in transformers' format: JSON and tensors, read without running any code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alum_fairseq.convert.architecture import Config
from alum_fairseq.convert.weights import Tensors
from alum_fairseq.errors import UsageError, one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a UsageError if it cannot be read, or holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__}, not an object with entries")
    return found


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> Config:
    """The folder's ``config.json``; a UsageError if there is none, or it is broken."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} has no {CONFIG}: it is not the folder of a transformers model")
    return Config(folder / CONFIG, read_json(folder / CONFIG))


def read_tensors(folder: Path) -> Tensors:
    """The tensors of ``model.safetensors`` or ``pytorch_model.bin``, in one file or in several.

    Raises:
        UsageError: there are none, or they are broken.
    """
    for name in (WEIGHTS, PICKLED):
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return Tensors(_current_names(_read_file(path)), path)
        if index.is_file():
            return Tensors(_current_names(_read_sharded(index)), index)
    raise UsageError(f"{folder} has no {WEIGHTS} (and no {PICKLED})")


def _current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first BERT called LayerNorm's weight gamma, and its bias beta."""
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): tensor
        for name, tensor in tensors.items()
    }


def _read_sharded(index: Path) -> dict[str, Tensor]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        raise UsageError(f"{index} has no weight_map from the names of tensors to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(shards.values())):
        if Path(file).name != file:
            raise UsageError(f"{index} names {file}, which is outside of its folder")
        if not (index.parent / file).is_file():
            raise UsageError(f"{index} names {file}, which does not exist")
        tensors.update(_read_file(index.parent / file))
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    path.open("rb").close()  # the libraries report a lack of permission as a broken file
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"{path} is not a safetensors file, or is cut short: {one_line(error)}"
            ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # broken bytes make torch and pickle raise anything
        raise UsageError(
            f"{path} is broken, or contains more than weights: save the model as safetensors"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UsageError(f"{path} does not hold tensors by name")
    return tensors
