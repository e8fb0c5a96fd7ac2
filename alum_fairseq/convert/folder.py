"""A model's folder as transformers writes it: JSON and tensors, read as data alone."""

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
from alum_fairseq.errors import UsageError, one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__}, not an object with entries")
    return found


def read_optional_json(path: Path) -> dict[str, Any]:
    """As :func:`read_json`; empty where there is no file."""
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people to read, too."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> Config:
    """The folder's ``config.json``.

    Raises:
        UsageError: there is none, or it is broken.
    """
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} has no {CONFIG}: it is no folder of a transformers model")
    return Config(folder / CONFIG, read_json(folder / CONFIG))


class Tensors:
    """The tensors of a folder, taken one by one; what is left at the end has no place.

    Make one with :meth:`read`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        # LayerNorm's parameters as the first BERT had them.
        self._left = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            ): tensor
            for name, tensor in tensors.items()
        }
        self._path = path

    @classmethod
    def read(cls, folder: Path) -> Tensors:
        """Read ``model.safetensors``, or ``pytorch_model.bin``, in one file or in several.

        Raises:
            UsageError: there are none, or they are broken.
        """
        for name in (WEIGHTS, PICKLED):
            if (folder / name).is_file():
                return cls(_read_file(folder / name), folder / name)
            index = folder / f"{name}.index.json"
            if index.is_file():
                return cls(_read_parts(index), index)
        raise UsageError(f"{folder} has no {WEIGHTS} (and no {PICKLED})")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @property
    def left(self) -> list[str]:
        """Names of the tensors that nobody took."""
        return sorted(self._left)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of a name, which must have a shape.

        Raises:
            UsageError: it is missing, has another shape, or is not of a floating type.
        """
        if name not in self._left:
            raise UsageError(f"{self._path} has no tensor {name}")
        tensor = self._left.pop(name)
        if tuple(tensor.shape) != shape:
            raise UsageError(
                f"{self._path}: {name} has shape {tuple(tensor.shape)}, not {shape}, which "
                f"{CONFIG} asks for"
            )
        if not tensor.is_floating_point():
            raise UsageError(f"{self._path}: {name} has type {tensor.dtype}: quantised?")
        return tensor

    def peek(self, name: str) -> Tensor:
        """A tensor that stays to be taken."""
        return self._left[name]

    def drop(self, name: str) -> None:
        """Do without a tensor that says nothing new."""
        self._left.pop(name, None)


def _read_parts(index: Path) -> dict[str, Tensor]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise UsageError(f"{index} has no weight_map from tensors to files")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part:
            raise UsageError(f"{index} names {part}, which is outside of its folder")
        if not (index.parent / part).is_file():
            raise UsageError(f"{index} names {part}, which does not exist")
        tensors.update(_read_file(index.parent / part))
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    path.open("rb").close()  # the libraries take a file that they may not read for a broken one
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"{path} is no safetensors file, or was cut short: {one_line(error)}"
            ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch and pickle raise whatever broken bytes lead them to
        raise UsageError(
            f"{path} is broken, or holds more than weights: save the model as safetensors"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UsageError(f"{path} holds no tensors by name")
    return tensors
