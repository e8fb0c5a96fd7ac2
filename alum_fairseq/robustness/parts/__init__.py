"""What is measured: each part looks at examples through a model, and gives a record of each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from typing_extensions import override

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.adversarial.gain import random_like
from alum_fairseq.adversarial.objectives import DivergenceFromClean
from alum_fairseq.robustness.attacks.greedy import (
    Attempt,
    CharacterEdits,
    Limits,
    greedy_attack,
    run_side_by_side,
)
from alum_fairseq.robustness.attacks.noise import NOISES, add_noise
from alum_fairseq.robustness.attacks.pgd import ProjectedGradient
from alum_fairseq.robustness.attacks.textattack_recipes import PredictProbabilities, run_recipe
from alum_fairseq.robustness.attacks.wordnet import WordNetSubstitutions
from alum_fairseq.robustness.store import Record
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Candidates, Example, Texts, Verdict


class Part(ABC):
    """A measurement.

    Attributes:
        name: its key among the records.
    """

    name: str

    @property
    @abstractmethod
    def cost(self) -> float:
        """What an example costs, roughly, in forward passes: for the time that is left."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What its records depend on, besides model and examples."""

    def check(self) -> None:  # noqa: B027 (most need nothing)
        """Make sure that what it needs is installed.

        Raises:
            UsageError: it is not.
        """

    @abstractmethod
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        """A record of each example, fit for JSON."""


@dataclass
class Clean(Part):
    """The examples as they are."""

    name: str = "clean"
    cost = 1.0
    settings = {}  # noqa: RUF012

    @override
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        verdicts = subject.verdicts([(example, example.texts) for example in examples])
        return [asdict(verdict) for verdict in verdicts]


@dataclass
class Noise(Part):
    """Typing mistakes of every kind, at several rates."""

    rates: Sequence[float]
    seed: int
    editable: Collection[int] | None
    name = "noise"

    @property
    @override
    def cost(self) -> float:
        return len(NOISES) * len(self.rates)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {"rates": list(self.rates), "seed": self.seed, "editable": _listed(self.editable)}

    @override
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        records: list[Record] = [{} for _ in examples]
        for kind in NOISES:
            for rate in self.rates:
                noised = [
                    add_noise(example.texts, kind, rate, self.seed, self.editable)
                    for example in examples
                ]
                verdicts = subject.verdicts(
                    [(e, each.texts) for e, each in zip(examples, noised, strict=True)]
                )
                for record, each, verdict in zip(records, noised, verdicts, strict=True):
                    record[f"{kind} {rate:g}"] = _outcome(each.texts, verdict, each.edits, 1)
        return records


@dataclass
class Words(Part):
    """Words replaced until the model errs: misspellings (``greedy``) or synonyms (``wordnet``)."""

    name: str
    limits: Limits
    seed: int
    editable: Collection[int] | None

    # Most attacks under way at a time; their questions make up the batches.
    _AT_MOST = 64

    @property
    @override
    def cost(self) -> float:
        return 0.35 * self.limits.max_queries

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {**asdict(self.limits), "seed": self.seed, "editable": _listed(self.editable)}

    @override
    def check(self) -> None:
        self._candidates()

    def _candidates(self) -> Candidates:
        """What may stand in the place of a word."""
        return CharacterEdits(self.seed) if self.name == "greedy" else WordNetSubstitutions()

    @override
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        candidates = self._candidates()

        def ask(asked: list[tuple[int, Texts]]) -> list[Verdict]:
            return subject.verdicts([(examples[number], texts) for number, texts in asked])

        attacks = (
            greedy_attack(example.texts, candidates, self.limits, self.editable)
            for example in examples
        )
        return list(map(_of_attempt, run_side_by_side(attacks, ask, self._AT_MOST)))


@dataclass
class TextAttack(Part):
    """A recipe of TextAttack's."""

    recipe: str
    max_queries: int
    seed: int
    editable: Collection[int] | None

    @property
    def name(self) -> str:
        """Its key among the records."""
        return f"textattack:{self.recipe}"

    @property
    @override
    def cost(self) -> float:
        return 0.7 * self.max_queries

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {
            "max_queries": self.max_queries,
            "seed": self.seed,
            "editable": _listed(self.editable),
        }

    @override
    def check(self) -> None:
        self._attempts([], (), lambda texts: [])

    @override
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        labels = subject.problem.labels
        return list(map(_of_attempt, self._attempts(examples, labels, subject.probabilities)))

    def _attempts(
        self, examples: Sequence[Example], labels: Sequence[str], predict: PredictProbabilities
    ) -> list[Attempt]:
        return run_recipe(
            self.recipe,
            examples,
            labels,
            predict,
            max_queries=self.max_queries,
            seed=self.seed,
            editable=self.editable,
        )


@dataclass
class Embeddings(Part):
    """The smallest perturbation of the embeddings that changes the prediction."""

    attack: ProjectedGradient
    seed: int

    @property
    def name(self) -> str:
        """Its key among the records."""
        return self.attack.norm

    @property
    @override
    def cost(self) -> float:
        return 6.0 * self.attack.steps * (0.5 + 0.5 * self.attack.restarts)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {**asdict(self.attack), "seed": self.seed}

    @override
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        return [
            record for batch in subject.batches(examples) for record in self._batch(subject, batch)
        ]

    def _batch(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        smallest = self.attack.smallest(subject.target(examples))
        found = smallest.found
        rows = zip(
            smallest.radius.tolist(),
            smallest.lower.tolist(),
            found.restart.tolist(),
            smallest.random.tolist(),
            found.flat.tolist(),
            strict=True,
        )
        return [
            {
                "epsilon": None if math.isinf(epsilon) else epsilon,
                "lower": lower,
                "prediction": None
                if math.isinf(epsilon)
                else subject.verdict(example, found.outputs[place]).prediction,
                "restart": max(restart, 0),
                "random": random,
                "flat": flat,
            }
            for place, (example, (epsilon, lower, restart, random, flat)) in enumerate(
                zip(examples, rows, strict=True)
            )
        ]


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


@dataclass
class Smoothness(Part):
    """How far the prediction moves for ALUM's perturbation, and for a random one as long."""

    epsilon: float
    seed: int
    name = "smoothness"
    cost = 6.0

    # Of the divergence for a random direction: it varies from one to the next.
    _DIRECTIONS = 3

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "seed": self.seed}

    @override
    def measure(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        return [
            record for batch in subject.batches(examples) for record in self._batch(subject, batch)
        ]

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
            for _ in range(self._DIRECTIONS)
        ]
        pairs = zip(moved(delta).tolist(), torch.stack(random).mean(0).tolist(), strict=True)
        return [{"adversarial": adversarial, "random": other} for adversarial, other in pairs]


def _listed(numbers: Collection[int] | None) -> list[int] | None:
    return None if numbers is None else sorted(numbers)


def _of_attempt(attempt: Attempt) -> Record:
    attacked = attempt.edits or attempt.verdict.correct  # else it was wrong to begin with
    queries = attempt.queries if attacked else 0
    return _outcome(attempt.texts, attempt.verdict, len(attempt.edits), queries)


def _outcome(texts: Texts, verdict: Verdict, edits: int, queries: int) -> Record:
    return {
        "texts": list(texts),
        "prediction": verdict.prediction,
        "correct": verdict.correct,
        "confidence": verdict.confidence,
        "edits": edits,
        "queries": queries,
    }
