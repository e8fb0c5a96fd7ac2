"""fairseq-train and our commands in the process of the tests: a start of Python costs seconds."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fairseq_cli import train

from alum_fairseq.errors import explained, printable


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, and the lines that it wrote on standard error."""

    status: int
    lines: list[str]

    @property
    def error(self) -> str:
        """The one line of a command that ended by wrong usage."""
        assert self.status == 2, (self.status, self.lines)
        assert len(self.lines) == 1, self.lines
        _, _, message = self.lines[0].partition(": error: ")
        assert message, self.lines
        return message


def run_command(main: Callable[[list[str]], int], *words: Any) -> Ended:
    """Run one of our commands; argparse ends the process, which counts as its status."""
    said = io.StringIO()
    log = logging.StreamHandler(said)
    logging.getLogger().addHandler(log)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = main([str(word) for word in words])
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        logging.getLogger().removeHandler(log)
    return Ended(status, said.getvalue().splitlines())


@dataclass(frozen=True)
class Trained:
    """How fairseq-train ended: what it logged, and the message of a usage error (else None)."""

    log: str
    error: str | None

    @property
    def began(self) -> bool:
        """Whether training began, or anything that changes a model."""
        return "begin training" in self.log or "Start iterating" in self.log


def fairseq_train(*words: Any) -> Trained:
    """Run fairseq-train with the plugin that this process has.

    Raises:
        Exception: whatever fairseq raises; a usage error, and what ends the process, is returned.
    """
    log = io.StringIO()
    root, handler = logging.getLogger(), logging.StreamHandler(log)
    # Our commands, in the same process, quiet fairseq.
    levels = {logger: logger.level for logger in (root, logging.getLogger("fairseq"))}
    root.addHandler(handler)
    for logger in levels:
        logger.setLevel(logging.INFO)
    error = None
    try:
        with (
            mock.patch.object(sys, "argv", ["fairseq-train", *map(str, words)]),
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            torch.random.fork_rng(devices=[]),
        ):
            train.cli_main()
    except SystemExit:
        error = log.getvalue().strip().splitlines()[-1]
    except Exception as raised:
        usage = explained(raised)
        if usage is None:
            raise
        error = printable(usage)
    finally:
        root.removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)
    return Trained(log.getvalue(), error)


def everything_in(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
