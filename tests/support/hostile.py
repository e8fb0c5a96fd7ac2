"""Files that a stranger could send: whoever runs what is in them gets a new folder."""

from __future__ import annotations

import functools
import importlib
import io
import operator
import os
import pickle
import pickletools
import runpy
import subprocess
import tarfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fairseq.utils
import numpy as np
import torch
from torch import nn
from torch._tensor import _rebuild_from_type_v2
from torch.storage import _load_from_bytes

State = dict[str, Any]


class Call:
    """Pickled, it is a call of a function, and a state to set on what that returns."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __call__(self) -> None:  # pickle insists that what is called can be
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def make_folder(target: Path) -> Call:
    """What most of the files call."""
    return Call(os.mkdir, str(target))


def script(target: Path) -> Path:
    """A package that makes the folder when it is imported, or run."""
    package = target.with_name(f"module_{target.name}")
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(f"import os\nos.mkdir({str(target)!r})\n")
    return package / "__init__.py"


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _beside(target: Path, content: bytes) -> str:
    path = target.with_name(f"beside_{target.name}")
    path.write_bytes(content)
    return str(path)


def npy(value: Any) -> bytes:
    """An array of objects as numpy saves it, with a pickle inside."""
    stream = io.BytesIO()
    np.save(stream, np.array([value], dtype=object), allow_pickle=True)
    return stream.getvalue()


# What a pickle may ask for: many ways to one end.
PAYLOADS: dict[str, Callable[[Path], Call]] = {
    "os.mkdir": make_folder,
    "eval": lambda t: Call(eval, f"__import__('os').mkdir({str(t)!r})"),
    "exec": lambda t: Call(exec, f"import os; os.mkdir({str(t)!r})"),
    "a process": lambda t: Call(subprocess.check_call, ["mkdir", str(t)]),
    "a method": lambda t: Call(Path.mkdir, t),
    "partial": lambda t: Call(operator.call, Call(functools.partial, os.mkdir, str(t))),
    "getattr of an import": lambda t: Call(
        Call(getattr, Call(importlib.import_module, "os"), "mkdir"), str(t)
    ),
    "a script": lambda t: Call(runpy.run_path, str(script(t))),
    "a file of torch's in the file": lambda t: Call(_load_from_bytes, saved(make_folder(t))),
    "torch.load that trusts": lambda t: Call(
        functools.partial(torch.load, weights_only=False), _beside(t, saved(make_folder(t)))
    ),
    "numpy.load that trusts": lambda t: Call(np.load, _beside(t, npy(make_folder(t))), None, True),
    "fairseq's --user-dir": lambda t: Call(
        fairseq.utils.import_user_module, Namespace(user_dir=str(script(t).parent))
    ),
    "torch.hub": lambda t: Call(torch.hub._import_module, f"module_{t.name}", str(script(t))),
    "numpy's number of any type": lambda t: Call(
        np.float64().__reduce__()[0], np.dtype("O"), make_folder(t)
    ),
    "state of a Namespace": lambda t: Call(Namespace, state={"arch": make_folder(t)}),
    "slots of a Namespace": lambda t: Call(Namespace, state=({}, {"arch": make_folder(t)})),
}


def _in(*keys: Any) -> Callable[[State, Any], State]:
    """A place by the keys, or attributes, that lead to it; what is on the way is made."""

    def put(state: State, payload: Any) -> State:
        at: Any = state
        for key in keys[:-1]:
            at = vars(at)[key] if isinstance(at, Namespace) else at[key]
        (vars(at) if isinstance(at, Namespace) else at)[keys[-1]] = payload
        return state

    return put


def _first_weight(state: State, value: Callable[[torch.Tensor], Any]) -> State:
    name = next(iter(state["model"]))
    return {**state, "model": {**state["model"], name: value(state["model"][name])}}


def _hooks_of_tensor(weight: torch.Tensor, payload: Any) -> Call:
    function, arguments = weight.__reduce_ex__(2)
    return Call(function, *arguments[:-1], payload)


def _hooks_of_parameter(weight: torch.Tensor, payload: Any) -> Call:
    function, arguments = nn.Parameter(weight).__reduce_ex__(2)
    return Call(function, *arguments[:-1], payload)


# Where in a checkpoint it could hide: each puts an object into a sound state.
PLACES: dict[str, Callable[[State, Any], Any]] = {
    "instead of all": lambda state, payload: payload,
    "an entry": _in("more"),
    "a name": lambda state, payload: {**state, payload: 1},
    "in args": lambda state, payload: {**state, "args": Namespace(arch="roberta", lr=payload)},
    "deep in args": lambda state, payload: {
        **state,
        "args": Namespace(arch="roberta", lr=[{"x": (Namespace(y=payload),)}]),
    },
    "in cfg": _in("cfg", "common", "user_dir"),
    "the model's options": _in("cfg", "model", "dropout"),
    "instead of a weight": lambda state, payload: _first_weight(state, lambda _: payload),
    "hooks of a weight": lambda state, payload: _first_weight(
        state, lambda weight: _hooks_of_tensor(weight, payload)
    ),
    "hooks of a parameter": lambda state, payload: _first_weight(
        state, lambda weight: _hooks_of_parameter(weight, payload)
    ),
    "type of a weight": lambda state, payload: _first_weight(
        state,
        lambda weight: Call(
            _rebuild_from_type_v2, *payload.parts[:1], nn.Parameter, payload.parts[1], {}
        ),
    ),
    "optimizer": _in("last_optimizer_state"),
    "history": _in("optimizer_history", 0, "lr_scheduler_state"),
    "iterator": _in("extra_state", "train_iterator"),
    "best metric": _in("extra_state", "best"),
    "criterion": _in("criterion"),
    "state of the task": _in("task_state"),
}


def _old_parts(state: State) -> list[bytes]:
    """The pickles of torch's format before it was an archive, and the storages after them."""
    stream = io.BytesIO(saved(state, _use_new_zipfile_serialization=False))
    parts = []
    for _ in range(5):
        begin = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(stream.getvalue()[begin : stream.tell()])
    return [*parts, stream.read()]


def old_format_with(part: int) -> Callable[[State, Any], bytes]:
    """A file of the old format with the payload instead of one of its pickles."""

    def write(state: State, payload: Any) -> bytes:
        parts = _old_parts(state)
        parts[part] = pickle.dumps(payload, protocol=2)
        return b"".join(parts)

    return write


def oldest_format(state: State, payload: Any) -> bytes:
    """The tar archive of torch 0.1, with the payload in the first of its files."""
    stream = io.BytesIO()
    content = pickle.dumps(payload, protocol=2)
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


# Files that are written by hand: the whole content, of a sound state and the object.
FILES: dict[str, Callable[[State, Any], bytes]] = {
    "a bare pickle": lambda state, payload: pickle.dumps({**state, "more": payload}),
    "of protocol 0": lambda state, payload: pickle.dumps(payload, protocol=0),
    "old: magic number": old_format_with(0),
    "old: protocol": old_format_with(1),
    "old: system": old_format_with(2),
    "old: keys of storages": old_format_with(4),
    "oldest": oldest_format,
}


def run_by_the_trusting(path: Path) -> None:
    """Read a file as torch did before it stopped trusting; what fails after the call fails."""
    for read in (
        lambda: torch.load(path, weights_only=False),
        lambda: pickle.loads(path.read_bytes()),
    ):
        try:
            read()
        except Exception:
            continue
