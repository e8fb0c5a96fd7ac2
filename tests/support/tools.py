"""The environment's commands, run as a user runs them, and what they log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.quick_train import run_forked

# Programs of fairseq that need no new Python: they are forked, which saves 6 seconds each time.
FORKED = {"fairseq-hydra-train": "hydra_train", "fairseq-preprocess": "preprocess"}


def run_tool(
    *command: Any, cwd: Path | None = None, check: bool = True, python: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's commands; on failure show what it said.

    ``python=True`` starts a new Python for those in ``FORKED``, too.
    """
    name, *arguments = map(str, command)
    if name in FORKED and not python:
        return run_forked(FORKED[name], arguments, cwd, check)
    done = subprocess.run(
        [str(Path(sys.executable).with_name(name)), *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}", pytrace=False)
    return done


def json_log(output: str, kind: str) -> list[dict[str, Any]]:
    """The lines that ``--log-format json`` wrote for ``train_inner``, ``train`` or ``valid``."""
    found = re.findall(rf"\| INFO \| {kind} \| (\{{.*\}})$", output, flags=re.MULTILINE)
    return [json.loads(line) for line in found]


Train = Callable[..., subprocess.CompletedProcess[str]]
