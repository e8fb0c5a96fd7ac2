"""Words replaced, the most important ones first, until the model errs."""

from __future__ import annotations

from abc import abstractmethod
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from alum_fairseq.robustness.attacks.greedy import (
    Limits,
    character_edits,
    greedy_attack,
    run_side_by_side,
)
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import check_share
from alum_fairseq.robustness.parts.part import Part, register_part
from alum_fairseq.robustness.parts.word_attack import WordAttack, attempted, editable_texts
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Candidates, Example, Record, Texts, Verdict

# Most attacks under way at a time; their questions make up the batches.
_AT_MOST = 64


@dataclass
class GreedyAttack(WordAttack):
    """The greedy search; subclasses say what may stand in the place of a word."""

    limits: Limits

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        check_share("--max-edits is", options.max_edits)
        limits = Limits(max_edits=options.max_edits, max_queries=options.max_queries)
        return [cls(options.seed, editable_texts(options, data), limits)]

    @abstractmethod
    def candidates(self) -> Candidates:
        """What may stand in the place of a word; a UsageError if what it needs is not installed."""

    @property
    @override
    def cost(self) -> float:
        return 0.35 * self.limits.max_queries

    @override
    def check(self) -> None:
        self.candidates()

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        candidates = self.candidates()

        def ask(asked: list[tuple[int, Texts]]) -> list[Verdict]:
            return subject.verdicts([(examples[number], texts) for number, texts in asked])

        attacks = (greedy_attack(e.texts, candidates, self.limits, self.editable) for e in examples)
        return list(map(attempted, run_side_by_side(attacks, ask, _AT_MOST)))


@register_part("greedy")
class Misspellings(GreedyAttack):
    """Typing mistakes."""

    label = "misspellings"

    @override
    def candidates(self) -> Candidates:
        return character_edits(self.seed)
