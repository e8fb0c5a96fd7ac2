"""Runs one of fairseq's tools, and says how long the processor worked on its updates.

python tool.py SPEC [the tool's arguments ...]

SPEC is JSON: ``tool``; ``products``, see ``cells.Recipe``; and where wanted ``seconds``, the file
to be written when the tool has ended, and ``head_only``, see ``cells.Cell``.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_MODULES = {"fairseq-train": "fairseq_cli.train", "fairseq-validate": "fairseq_cli.validate"}


class Stopwatch:
    """Adds up what the processor worked in calls of a function.

    Unlike the time on the clock, it does not run on while the process waits for its turn.

    Attributes:
        seconds: of all threads of the process.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def on(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed


def head_only(build: Callable[..., Any]) -> Callable[..., Any]:
    """What builds a model, of which then only the head that predicts words is trained.

    The embeddings, which the head shares, are not.
    """

    def built(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("encoder.lm_head."))
        return model

    return built


def main(spec: str, *arguments: str) -> None:
    """Run the tool."""
    wanted = json.loads(spec)
    torch.set_float32_matmul_precision(wanted["products"])
    module = importlib.import_module(_MODULES[wanted["tool"]])  # the first to set logging up
    trainer = importlib.import_module("fairseq.trainer").Trainer
    watch = Stopwatch()
    trainer.train_step = watch.on(trainer.train_step)
    if wanted.get("head_only"):
        task = importlib.import_module("fairseq.tasks").FairseqTask
        task.build_model = head_only(task.build_model)
    sys.argv = [wanted["tool"], *arguments]
    module.cli_main()
    if wanted.get("seconds"):
        Path(wanted["seconds"]).write_text(f"{watch.seconds:.1f}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
