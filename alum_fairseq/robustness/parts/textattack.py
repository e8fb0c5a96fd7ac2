"""Attacks of the literature, as recipes of TextAttack, where it is installed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems import TokenProblem
from alum_fairseq.robustness.attacks.greedy import Attempt
from alum_fairseq.robustness.attacks.textattack_recipes import run_recipe
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.part import Part, register_part
from alum_fairseq.robustness.parts.word_attack import (
    USUAL_WORDS,
    WordAttack,
    attempted,
    editable_texts,
)
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record


@register_part("textattack")
@dataclass
class TextAttack(WordAttack):
    """A recipe of TextAttack, each variant the class of another one.

    Attributes:
        max_queries: for each word of an example, if ``a_word``.
    """

    max_queries: int
    a_word: bool = False
    variant: str = field(kw_only=True, compare=False)
    by_name = False

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
        if options.textattack and isinstance(data.problem, TokenProblem):
            raise UsageError(f"--textattack is for classes, not for {data.problem.answers}")
        if options.textattack and not data.problem.categorical:
            raise UsageError("--textattack is for classes, but the model predicts numbers")
        editable = editable_texts(options, data)
        given = (options.max_queries or options.max_candidates, options.max_queries is None)
        return [
            cls(options.seed, editable, *given, variant=recipe)
            for recipe in dict.fromkeys(options.textattack)
        ]

    @property
    @override
    def cost(self) -> float:
        return 0.7 * self.max_queries * (USUAL_WORDS if self.a_word else 1)

    @override
    def check(self) -> None:
        self._attempts([], (), lambda texts: [])

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        attempts = self._attempts(examples, subject.problem.labels, subject.logits)
        return list(map(attempted, attempts))

    def _attempts(self, *given: Any) -> list[Attempt]:
        options = {"max_queries": self.max_queries, "a_word": self.a_word, "seed": self.seed}
        return run_recipe(self.variant, *given, **options, editable=self.editable)
