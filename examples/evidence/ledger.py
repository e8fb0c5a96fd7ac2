"""The file of results: one JSON line a run, each appended whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]

DONE, FAILED = "done", "failed"


def read(path: Path) -> list[Result]:
    """The results of a file, those that failed included; a line that is not whole counts for none.

    Only the last line can be such: it was being written when the machine stopped.
    """
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            found.append(one)
    return found


def is_done(result: Mapping[str, Any]) -> bool:
    """Whether it is that of a run that went well."""
    return result.get("status") == DONE


def name(result: Mapping[str, Any]) -> str:
    """What the grid calls its cell."""
    return "/".join(str(result[part]) for part in ("study", "task", "method", "seed"))


def append(path: Path, result: Mapping[str, Any]) -> None:
    """Add a line, on the disk when this returns."""
    line = json.dumps(result, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
