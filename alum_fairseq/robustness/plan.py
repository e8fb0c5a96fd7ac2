"""What a run of ``alum-robustness`` measures, and on which examples."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.greedy import Limits
from alum_fairseq.robustness.attacks.pgd import OBJECTIVES, ProjectedGradient
from alum_fairseq.robustness.parts import (
    YARDSTICK,
    Clean,
    Embeddings,
    Noise,
    Part,
    Smoothness,
    TextAttack,
    Words,
)
from alum_fairseq.robustness.report.summary import RADII
from alum_fairseq.robustness.sets import AdversarialSet

PARTS = ("noise", "greedy", "wordnet", "linf", "l2", "smoothness")


_LEAST = {
    "examples": 0,
    "attack_examples": 0,
    "steps": 1,
    "restarts": 1,
    "max_queries": 1,
    "resamples": 100,
}


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        examples: how many are drawn from the data; 0: all.
        attack_examples: how many of those are attacked (all parts but clean and noise); 0: all.
        steps: of an attack on embeddings.
        restarts: of an attack on embeddings.
        noise_rates: the shares of the words with a typing mistake.
        max_queries: of an attack on words.
        resamples: of bootstrap and randomisation.
    """

    examples: int = 1000
    attack_examples: int = 200
    steps: int = 10
    restarts: int = 2
    noise_rates: tuple[float, ...] = (0.1, 0.2, 0.4)
    max_queries: int = 200
    resamples: int = 1000

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is {value}: it must be {least} or more")
        wrong = [rate for rate in self.noise_rates if not 0 < rate <= 1]
        if wrong:
            raise UsageError(
                f"--noise-rates has {wrong[0]:g}: a share of the words is above 0 and at most 1"
            )


FULL = Effort()
QUICK = Effort(
    examples=200,
    attack_examples=32,
    steps=5,
    restarts=1,
    noise_rates=(0.2,),
    max_queries=60,
    resamples=200,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that say what is measured."""
    how = parser.add_argument_group("what is measured")
    how.add_argument(
        "--quick",
        action="store_true",
        help="a first impression: fewer examples, steps and rates; the defaults in brackets",
    )
    how.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        metavar="PART",
        help=f"besides clean accuracy; from {', '.join(PARTS)} (default: all; wordnet where it is "
        "installed)",
    )
    _add_effort(how, "examples", int, "N", "examples, drawn at random; 0: all")
    _add_effort(how, "attack-examples", int, "N", "how many of them are attacked; 0: all")
    _add_effort(how, "noise-rates", float, "RATE", "shares of the words with a typing mistake")
    how.add_argument(
        "--edit",
        nargs="+",
        type=int,
        metavar="TEXT",
        help="numbers of the texts of an example that may be edited, from 1 (default: all)",
    )
    how.add_argument(
        "--max-edits",
        type=float,
        default=Limits().max_edits,
        metavar="SHARE",
        help="share of the words that an attack may replace (default: %(default)s)",
    )
    _add_effort(how, "max-queries", int, "N", "texts that an attack may ask the model about")
    how.add_argument(
        "--textattack",
        nargs="+",
        default=[],
        metavar="RECIPE",
        help="recipes of TextAttack, where it is installed, such as DeepWordBugGao2018",
    )
    _add_effort(how, "steps", int, "N", "of attacks on embeddings")
    _add_effort(how, "restarts", int, "N", "of attacks on embeddings")
    how.add_argument(
        "--objectives",
        nargs="+",
        choices=OBJECTIVES,
        default=list(OBJECTIVES),
        help="what attacks on embeddings raise, restarts in turn (default: both)",
    )
    how.add_argument(
        "--radii",
        nargs="+",
        type=float,
        default=list(RADII),
        metavar="EPSILON",
        help="at which accuracy is reported, as multiples of the embeddings' root mean square "
        f"(default: {' '.join(map(str, RADII))})",
    )
    how.add_argument(
        "--adversarial-set",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="further labelled files, laid out as the data; or anli:FILE, hans:FILE, "
        "advglue:FILE#TASK",
    )
    how.add_argument(
        "--map-labels",
        nargs="+",
        default=[],
        metavar="LABEL=LABELS",
        help="which of the model's labels are right where a set has this one",
    )
    how.add_argument(
        "--tolerance",
        type=float,
        help="regression: a prediction this far from the answer still is right (default: half the "
        "standard deviation of the answers)",
    )
    _add_effort(how, "resamples", int, "N", "of bootstrap and randomisation tests")
    how.add_argument("--seed", type=int, default=1, help="of everything drawn (default: 1)")


def _add_effort(group: Any, name: str, kind: type, metavar: str, text: str) -> None:
    full, quick = (getattr(effort, name.replace("-", "_")) for effort in (FULL, QUICK))
    several = isinstance(full, tuple)
    shown = [" ".join(map(str, each)) if several else each for each in (full, quick)]
    group.add_argument(
        f"--{name}",
        type=kind,
        nargs="+" if several else None,
        metavar=metavar,
        help=f"{text} (default: {shown[0]} [{shown[1]}])",
    )


def effort_of(arguments: argparse.Namespace) -> Effort:
    """What the options say, and where they are silent the defaults.

    Raises:
        UsageError: a number is out of its range.
    """
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name in asdict(FULL)
        if (value := getattr(arguments, name)) is not None
    }
    return replace(QUICK if arguments.quick else FULL, **given)


def parts_of(
    arguments: argparse.Namespace, effort: Effort, sets: Sequence[AdversarialSet]
) -> list[Part]:
    """The measurements, clean accuracy first.

    Raises:
        UsageError: an option is out of its range, or names what is not installed.
    """
    seed, editable = arguments.seed, _editable(arguments.edit)
    if not 0 < arguments.max_edits <= 1:
        raise UsageError(
            f"--max-edits is {arguments.max_edits:g}: a share of the words is above 0 and at most 1"
        )
    limits = Limits(max_edits=arguments.max_edits, max_queries=effort.max_queries)
    made: dict[str, Part] = {
        "noise": Noise(effort.noise_rates, seed, editable),
        "greedy": Words("greedy", limits, seed, editable),
        "wordnet": Words("wordnet", limits, seed, editable),
        "smoothness": Smoothness(YARDSTICK.epsilon, seed),
    }
    for norm in ("linf", "l2"):
        objectives = tuple(dict.fromkeys(arguments.objectives))
        attack = ProjectedGradient(norm, effort.steps, effort.restarts, objectives)
        made[norm] = Embeddings(attack, seed)
    wrong = [radius for radius in arguments.radii if not 0 < radius < float("inf")]
    if wrong:
        raise UsageError(f"--radii has {wrong[0]:g}: radii are finite, and above 0")
    chosen = arguments.parts or PARTS
    return [
        Clean(),
        *(made[name] for name in PARTS if name in chosen),
        *(
            TextAttack(recipe, effort.max_queries, seed, editable)
            for recipe in dict.fromkeys(arguments.textattack)
        ),
        *(Clean(f"set:{each.name}") for each in sets),
    ]


def _editable(numbers: Collection[int] | None) -> list[int] | None:
    """From 0, as programs count."""
    if numbers is None:
        return None
    if min(numbers) < 1:
        raise UsageError(f"--edit is {min(numbers)}: the texts of an example count from 1")
    return sorted({number - 1 for number in numbers})
