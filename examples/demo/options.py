"""The demo's options, and how much of everything each scale takes.

Needs nothing but Python, so that ``--help`` works before set-up.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        megabytes: source code that is read of each package.
        vocabulary: pieces.
        layers: of the model.
        width: of the model.
        batch: sequences of ``tokens`` in a batch.
        tokens: in a sequence.
        updates: of pre-training.
        valid_tokens: that the learning curve is measured on.
        test_tokens: that the final models are measured on.
        examples: of each class, for training.
        test_examples: of each class, at most.
        epochs: of fine-tuning.
        seeds: of fine-tuning.
        measured: examples that the robustness report reads.
        attacked: how many of those it attacks.
    """

    megabytes: float
    vocabulary: int
    layers: int
    width: int
    batch: int
    tokens: int
    updates: int
    valid_tokens: int
    test_tokens: int
    examples: int
    test_examples: int
    epochs: int
    seeds: int
    measured: int
    attacked: int


SCALES = {
    "small": Scale(
        megabytes=8, vocabulary=4000, layers=2, width=128, batch=16, tokens=32, updates=1500,
        valid_tokens=16_000, test_tokens=40_000, examples=500, test_examples=150, epochs=2, seeds=2,
        measured=500, attacked=100,
    ),
    "tiny": Scale(
        megabytes=0.4, vocabulary=600, layers=1, width=32, batch=4, tokens=32, updates=20,
        valid_tokens=800, test_tokens=800, examples=20, test_examples=8, epochs=1, seeds=1,
        measured=30, attacked=10,
    ),
}  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bash scripts/demo.sh",
        description="Pre-trains a small RoBERTa twice, plainly and with ALUM, on the docstrings of "
        "the installed Python packages, with fairseq's own command-line tools; attacks both, "
        "fine-tunes both in both ways, measures how robust they became, and shows the results as "
        "tables, a picture and a report. Needs no network after set-up. Interrupted, it goes on "
        "where it stopped; finished, it says so.",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo-output", metavar="DIR",
        help="folder for everything that it makes (default: demo-output in the clone)",
    )  # fmt: skip
    parser.add_argument(
        "--scale", choices=SCALES, default="small",
        help="small: minutes, a model that learns something (default); tiny: the same steps in "
        "about a minute, a model that learns nothing",
    )  # fmt: skip
    parser.add_argument(
        "--updates",
        type=_positive,
        metavar="N",
        help="updates of pre-training (default: the scale's)",
    )
    parser.add_argument(
        "--seeds", type=_positive, metavar="N", help="seeds of fine-tuning (default: the scale's)"
    )
    parser.add_argument(
        "--preset", choices=("calibrated", "paper", "reference"), default="calibrated",
        help="the ALUM that is pre-trained with; the attack in the end is always 'calibrated' "
        "(default: calibrated)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=_positive, default=2, metavar="N",
        help="how many single-threaded tools run at a time (default: 2)",
    )  # fmt: skip
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()
