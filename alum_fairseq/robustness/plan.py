"""What a run of ``alum-robustness`` measures, and on which examples."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts import PARTS, Part
from alum_fairseq.robustness.parts.options import add_effort
from alum_fairseq.robustness.parts.word_attack import STANDARDS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is measured, with those of every part."""
    how = parser.add_argument_group("what is measured")
    how.add_argument(
        "--quick",
        action="store_true",
        help="a first impression: fewer examples, steps and rates",
    )
    named = [kind for kind, part in PARTS.items() if part.by_name]
    optional = ", ".join(kind for kind in named if PARTS[kind].optional)
    how.add_argument(
        "--parts",
        nargs="+",
        choices=named,
        metavar="PART",
        help=f"besides clean accuracy; from {', '.join(named)} (default: all; {optional} where it "
        "is installed)",
    )
    add_effort(how, "--examples", 1000, 200, "examples, drawn at random; 0: all", least=0)
    add_effort(how, "--attack-examples", 200, 32, "how many of them are attacked; 0: all", least=0)
    families = [cls for part in PARTS.values() for cls in reversed(part.__mro__)]
    for cls in dict.fromkeys(families):
        if "add_options" in vars(cls):
            cls.add_options(how)
    how.add_argument(
        "--tolerance",
        type=float,
        help="regression: a prediction this far from the answer still is right (default: half the "
        "standard deviation of the answers)",
    )
    add_effort(how, "--resamples", 5000, 5000, "of the bootstrap", least=100)
    how.add_argument("--seed", type=int, default=1, help="of everything drawn (default: 1)")


def plan(options: argparse.Namespace, data: Data) -> tuple[list[Part], list[str]]:
    """What is measured, and what a reader must know of it.

    Returns:
        The parts, in the order in which they were registered; and lines that say which others are
        left out and why, and how words are attacked.

    Raises:
        UsageError: an option is out of its range, or names what is not installed.
    """
    parts: list[Part] = []
    notes: dict[tuple[str, str], list[str]] = {}  # what is said, and of which parts
    for kind in PARTS.values():
        for part in kind.from_options(options, data):  # which checks the options of all kinds
            if kind.by_name and options.parts and kind.kind not in options.parts:
                continue
            try:
                part.check()
            except UsageError as error:
                if not kind.by_name:
                    raise
                if options.parts:
                    raise UsageError(f"--parts {part.kind}: {error}") from None
                notes.setdefault(("left out: ", str(error)), []).append(part.kind)
            else:
                parts.append(part)
                if part.note:
                    notes.setdefault(("in ", part.note), []).append(part.kind)
    said = [f"{begin}{', '.join(names)}: {text}" for (begin, text), names in notes.items()]
    return parts, [*_standard(options), *said]


def _standard(options: argparse.Namespace) -> Iterator[str]:
    """The constraints of a paper that attacks on words keep to, and those that they do not."""
    if options.standard is None:
        return
    own = [
        f"--{name.replace('_', '-')} {value}"
        for name, usual in STANDARDS[options.standard].items()
        if (value := getattr(options, name)) != usual
    ]
    if options.similarity_encoder is None:
        own.append("the limit of similarity, as there is no --similarity-encoder")
    but = f", but for {', '.join(own)}" if own else ""
    yield f"attacks on words: --standard {options.standard}{but}"
