"""The smallest perturbation of the embeddings that changes the prediction."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.attacks.pgd import DIVERGENCE, LOSS, OBJECTIVES, ProjectedGradient
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import add_effort
from alum_fairseq.robustness.parts.part import Axis, Curve, Measure, Part, Records, register_part
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record

RADII = (0.01, 0.03, 0.1)
_POINTS = 60  # of a curve

# What a sound attack shows, after Athalye et al. (2018), https://arxiv.org/abs/1802.00420,
# section 3.1, and Carlini et al. (2019), https://arxiv.org/abs/1902.06705.
MASKED = (
    "The gradients may be masked, and the model less robust than it looks "
    "(Athalye et al. 2018; Carlini et al. 2019)."
)


@dataclass
class EmbeddingAttack(Part):
    """Projected gradient ascent; its norm is the kind of the part, and radii are sorted."""

    attack: ProjectedGradient
    seed: int
    radii: Sequence[float] = field(default=RADII, compare=False)
    rank = 10
    group = "Attack on the embeddings, {}"
    axis = Axis(
        "radius, in root mean squares of the embeddings",
        "The share of {right} that is left (up) when an attack may move the embeddings that "
        "far (right, logarithmic); dots at the left edge: without attack. Bands: 95% intervals.",
        logarithmic=True,
    )

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        add_effort(group, "--steps", 10, 5, "of attacks on embeddings", least=1)
        add_effort(group, "--restarts", 2, 1, "of attacks on embeddings", least=1)
        group.add_argument(
            "--objectives",
            nargs="+",
            choices=OBJECTIVES,
            default=[LOSS, DIVERGENCE],
            metavar="OBJECTIVE",
            help="what attacks on embeddings raise, restarts in turn; from "
            f"{', '.join(OBJECTIVES)} (default: loss divergence)",
        )
        group.add_argument(
            "--radii",
            nargs="+",
            type=float,
            default=list(RADII),
            metavar="EPSILON",
            help="at which accuracy is reported, as multiples of the embeddings' root mean square "
            f"(default: {' '.join(map(str, RADII))})",
        )

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        wrong = [radius for radius in options.radii if not 0 < radius < math.inf]
        if wrong:
            raise UsageError(f"--radii has {wrong[0]:g}: radii are finite, and above 0")
        objectives = tuple(dict.fromkeys(options.objectives))
        attack = ProjectedGradient(cls.kind, options.steps, options.restarts, objectives)
        return [cls(attack, options.seed, sorted(options.radii))]

    @property
    @override
    def cost(self) -> float:
        return 6.0 * self.attack.steps * (0.5 + 0.5 * self.attack.restarts)

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        records: list[Record] = []
        for batch in subject.batches(examples):
            smallest = self.attack.smallest(subject.target(batch))
            found = smallest.found
            # Whatever broke it counts.
            radius = smallest.lower.where(smallest.search, smallest.radius)
            columns = (radius, smallest.lower, found.restart, smallest.random, found.flat)
            columns = (*columns, smallest.search)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            records += [
                {
                    "epsilon": None if math.isinf(epsilon) else epsilon,
                    "lower": lower,
                    "restart": max(restart, 0),
                    "random": random,
                    "flat": flat,
                    "search": search,
                }
                for epsilon, lower, restart, random, flat, search in rows
            ]
        return records

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        share, radii, columns = records.accuracy, self.radii, records.columns(_epsilon)
        for radius in radii:
            yield self.measure(
                f"accuracy.{radius:g}", f"{share}, radius {radius:g}",
                f"What is left when an attack may move embeddings by {radius:g} times their root "
                "mean square.",
                lambda column, radius=radius: statistics.mean(column > radius), columns,
                main=radius == radii[len(radii) // 2],
            )  # fmt: skip
        yield self.measure(
            "area", f"{share}, mean to {radii[-1]:g}",
            f"Mean over all radii from 0 to {radii[-1]:g}: the area under the curve.",
            statistics.area_up_to(radii[-1]), columns,
        )  # fmt: skip
        yield self.measure(
            "median", "Median radius that breaks",
            "Of the examples that were right without an attack, half are broken by a smaller one.",
            statistics.median_above_zero, columns, unit="", undefined="none found",
        )  # fmt: skip

    def curves(self, records: Records, clean: Records) -> Iterator[Curve]:
        """From 0, then from below the smallest radius that breaks anything to the largest tried."""
        found = records.every()
        broken = [record["epsilon"] for record in found if record["epsilon"]]
        top = max([*broken, *(record["lower"] for record in found)])
        if top:
            bottom = min([*broken, top / 10]) / 2
            # As they will be written: accuracy is counted at these very radii.
            radii = [0.0, *(float(f"{r:.6g}") for r in np.geomspace(bottom, top, _POINTS))]
            yield Curve(radii, statistics.share_above(radii), records.columns(_epsilon))

    @override
    def warnings(self, model: str, records: Records) -> Iterator[str]:
        where = f"{model}, {self.label} attack"
        tried = [record for record in records.every() if record["epsilon"] != 0]  # right without
        broken = [record for record in tried if record["epsilon"] is not None]
        if not tried:
            return
        unbroken = 1 - len(broken) / len(tried)
        if unbroken:
            yield (
                f"{where}: {unbroken:.1%} of the examples were not broken at any radius up to the "
                f"ceiling, where an attack without bounds should break all. {MASKED}"
            )
        flat = sum(record["flat"] for record in tried) / len(tried)
        if flat > 0.01:
            yield f"{where}: no usable gradient for {flat:.1%} of the examples. {MASKED}"
        searched = sum(record["search"] for record in tried) / len(tried)
        if searched > 0.01:
            yield (
                f"{where}: {searched:.1%} of the examples are broken by a random search without "
                f"gradients at a radius where the gradients failed. {MASKED}"
            )
        if not broken:
            return
        hits = sum(record["random"] for record in broken)
        if hits > max(2, 0.1 * len(broken)):
            yield (
                f"{where}: for {hits / len(broken):.1%} of the broken examples one of ten random "
                "perturbations of that size breaks them as well; the attack hardly beats noise. "
                f"{MASKED}"
            )
        first = sum(record["restart"] == 0 for record in broken) / len(broken)
        if first < 0.8:
            yield (
                f"{where}: only {first:.1%} of what was broken was broken best by the first "
                f"restart; more restarts would find more. {MASKED}"
            )


def _epsilon(record: Record) -> float:
    return math.inf if record["epsilon"] is None else record["epsilon"]


@register_part("linf")
class LInfAttack(EmbeddingAttack):
    """In the infinity norm."""

    label = "L-infinity"


@register_part("l2")
class L2Attack(EmbeddingAttack):
    """In the Euclidean norm."""

    label = "L2"
