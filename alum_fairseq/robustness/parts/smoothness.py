"""How far the prediction moves for ALUM's perturbation, and for a random one as long."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from typing_extensions import override

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.adversarial.gain import random_like
from alum_fairseq.adversarial.objectives import DivergenceFromClean
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.embeddings import MASKED
from alum_fairseq.robustness.parts.part import Measure, Part, Records, register_part
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record

# What smoothness is measured with: a yardstick stays what it is, whatever presets become.
YARDSTICK = Adversary(
    steps=1,
    epsilon=0.1,
    epsilon_mode="relative",
    step_size=1.0,
    norm="l2",
    norm_scope="sentence",
    gradient="normalized",
    projection="rescale",
)

# Of the divergence for a random direction: it varies from one to the next.
_DIRECTIONS = 3


@register_part("smoothness")
@dataclass
class Smoothness(Part):
    """The divergence from the clean prediction; epsilon is counted as in :data:`YARDSTICK`."""

    epsilon: float
    seed: int
    rank = 40
    cost = 6.0

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        return [cls(YARDSTICK.epsilon, options.seed)]

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        batches = subject.batches(examples)
        return [record for batch in batches for record in self._batch(subject, batch)]

    def _batch(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        target = subject.target(examples)
        adversary = replace(YARDSTICK, epsilon=self.epsilon)
        divergence = subject.divergence
        device = target.embeddings.device
        generator = torch.Generator(device).manual_seed(self.seed + examples[0].number)
        rows = torch.arange(len(examples), device=device)

        def predict(embeddings: torch.Tensor) -> torch.Tensor:
            return target.predict(embeddings, rows)

        def moved(delta: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                outputs = predict(target.embeddings + delta)
            moved = divergence.function(outputs.double(), target.clean.double())
            return moved.view(len(examples), -1).sum(1)

        objective = DivergenceFromClean(predict, target.clean, divergence)
        delta = adversary.perturb(objective, target.embeddings, target.mask, generator)
        random = [
            moved(random_like(adversary.ball, delta, target.mask, generator))
            for _ in range(_DIRECTIONS)
        ]
        pairs = zip(moved(delta).tolist(), torch.stack(random).mean(0).tolist(), strict=True)
        return [{"adversarial": adversarial, "random": other} for adversarial, other in pairs]

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        probabilities = records.problem.categorical
        what, unit = ("KL", "nats") if probabilities else ("Squared change", "")
        yield self.measure(
            "adversarial", f"{what}, adversarial",
            "How far the prediction moves when embeddings are moved in the worst direction"
            f"{' (KL divergence)' if probabilities else ''}.",
            statistics.mean, records.columns("adversarial"), unit=unit, better="lower",
        )  # fmt: skip
        yield self.measure(
            "random", f"{what}, random",
            "The same for a random direction of equal length.",
            statistics.mean, records.columns("random"), unit=unit, better="lower",
        )  # fmt: skip
        yield self.measure(
            "gain", "Gain",
            "The first over the second: around 1 the attack is noise, far above 1 it is an attack.",
            statistics.ratio, records.columns("adversarial", "random"), unit="", better=None,
        )  # fmt: skip

    @override
    def warnings(self, model: str, records: Records) -> Iterator[str]:
        found = records.every()
        adversarial, random = (sum(one[key] for one in found) for key in ("adversarial", "random"))
        if random > 0 and adversarial < 2 * random:
            yield (
                f"{model}: the worst direction moves predictions only {adversarial / random:.2g} "
                f"times as far as a random one. {MASKED}"
            )
