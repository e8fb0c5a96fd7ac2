"""Finished measurements on disk, so that a report that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alum_fairseq.errors import UsageError
from alum_fairseq.files import whole_file
from alum_fairseq.robustness.types import Record


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return _digest_of(path, path.stat().st_mtime_ns)


@cache
def _digest_of(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(content: Any) -> str:
    """The SHA-256 of what is fit for JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Store:
    """A file of JSON lines for each part of each checkpoint: what it depends on, then its chunks.

    Raises:
        UsageError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._head = json.dumps(key, sort_keys=True)
        self._path = folder / f"{hashlib.sha256(self._head.encode()).hexdigest()[:24]}.jsonl"
        self.chunks: dict[int, tuple[list[Record], float]] = {}
        # What is whole is read; of a line that was being written when the power went, nothing.
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror}") from None
        if lines[0].decode("utf-8", "replace") != self._head:
            return
        for line in lines[1:-1]:
            try:
                found = json.loads(line)
                self.chunks[int(found["chunk"])] = found["records"], float(found["seconds"])
            except (ValueError, KeyError, TypeError):
                break

    def add(self, chunk: int, records: list[Record], seconds: float) -> None:
        """Note that a chunk is done; its records are kept as they will be read."""
        self.chunks[chunk] = json.loads(json.dumps(records)), seconds
        # Whole, since what is there may end in the middle of a line. Chunks are few, and small.
        with whole_file(self._path) as aside, aside.open("w", encoding="utf-8") as file:
            file.write(self._head + "\n")
            for number, (found, took) in self.chunks.items():
                line = {"chunk": number, "seconds": round(took, 3), "records": found}
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
