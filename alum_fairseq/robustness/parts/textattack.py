"""Attacks of the literature, as recipes of TextAttack, where it is installed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.textattack_recipes import PredictProbabilities, run_recipe
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.part import Chosen, Part, register_part
from alum_fairseq.robustness.parts.word_attack import (
    WordAttack,
    attempted,
    editable_texts,
)
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record


@register_part("textattack")
@dataclass
class TextAttack(WordAttack):
    """A recipe, each variant another one.

    Attributes:
        max_queries: the most texts that the model may be asked about, an example.
        variant: the class of the recipe.
    """

    max_queries: int
    variant: str = field(kw_only=True, compare=False)
    chosen = Chosen.BY_OPTION

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        group.add_argument(
            "--textattack",
            nargs="+",
            default=[],
            metavar="RECIPE",
            help="recipes of TextAttack, where it is installed, such as DeepWordBugGao2018",
        )

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        if options.textattack and data.labels is None:
            raise UsageError("--textattack is for classes, but the model predicts numbers")
        editable = editable_texts(options, data)
        return [
            cls(options.seed, editable, options.max_queries, variant=recipe)
            for recipe in dict.fromkeys(options.textattack)
        ]

    @property
    @override
    def cost(self) -> float:
        return 0.7 * self.max_queries

    @override
    def check(self) -> None:
        self._run([], (), lambda texts: [])

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        return self._run(examples, subject.problem.labels, subject.probabilities)

    def _run(
        self, examples: Sequence[Example], labels: Sequence[str], predict: PredictProbabilities
    ) -> list[Record]:
        attempts = run_recipe(
            self.variant,
            examples,
            labels,
            predict,
            max_queries=self.max_queries,
            seed=self.seed,
            editable=self.editable,
        )
        return list(map(attempted, attempts))
