"""Where the ``alum-*`` commands start: ``--help`` comes at once, without torch and fairseq.

``import alum_fairseq`` imports both, so this stands outside of it. ``scripts/docs.py`` makes the
texts from the commands' parsers.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path


def _start(name: str) -> int:
    if sys.argv[-1] in ("-h", "--help"):
        texts = json.loads(Path(__file__).with_name("help.json").read_text(encoding="utf-8"))
        if lines := texts.get(" ".join([f"alum-{name}", *sys.argv[1:-1]])):
            try:
                print("\n".join(lines), flush=True)
            except OSError:  # the reader, such as `head`, has closed the pipe
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    return import_module(f"alum_fairseq.{name}.command").main()


def convert() -> int:
    """``alum-convert``."""
    return _start("convert")


def predict() -> int:
    """``alum-predict``."""
    return _start("predict")


def prepare() -> int:
    """``alum-prepare``."""
    return _start("prepare")


def robustness() -> int:
    """``alum-robustness``."""
    return _start("robustness")
