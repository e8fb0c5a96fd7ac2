"""Parts of a robustness measurement as a user would add them, outside the package."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.attacks.words import Candidates, of_words
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts import Part, register_part
from alum_fairseq.robustness.parts.greedy import GreedyAttack
from alum_fairseq.robustness.parts.part import Axis, Curve, Measure, Records
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record


@register_part("doubling")
class Doubling(GreedyAttack):
    """An attack on words: it says what may stand in the place of one, and is done."""

    label = "doubled letters"

    def candidates(self) -> Candidates:
        return of_words(lambda word: [word[:i] + word[i] + word[i:] for i in range(1, len(word))])


@register_part("beginning")
@dataclass
class Beginning(Part):
    """A part with everything of its own: the first words of the texts alone."""

    keep: list[float]
    cost = 2.0
    group = "Only the beginning"
    axis = Axis("words kept (%)", "Right answers (up) by the words that are kept.", scale=100)

    @classmethod
    def add_options(cls, group: Any) -> None:
        group.add_argument("--keep", nargs="+", type=float, default=[0.5], help="share of words")

    @classmethod
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        return [cls(sorted(options.keep))]

    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        records: list[Record] = [{} for _ in examples]
        for share in self.keep:
            asked = [(one, tuple(first(text, share) for text in one.texts)) for one in examples]
            for record, verdict in zip(records, subject.verdicts(asked), strict=True):
                record[str(share)] = asdict(verdict)
        return records

    def measures(self, records: Records) -> Iterator[Measure]:
        for share in self.keep:
            columns = records.columns(right_with(share))
            meaning = f"What is right with {share:.0%} of the words."
            yield self.measure(f"{share:g}", f"{share:.0%}", meaning, statistics.mean, columns)

    def curves(self, records: Records, clean: Records) -> Iterator[Curve]:
        columns = records.columns(*map(right_with, self.keep))
        yield Curve(self.keep, statistics.means, columns)

    def warnings(self, model: str, records: Records) -> Iterator[str]:
        yield f"{model}: {len(records.every())} beginnings may be beside the point."


def right_with(share: float) -> Callable[[Record], bool]:
    return lambda record: record[str(share)]["correct"]


def first(text: str, share: float) -> str:
    words = text.split()
    return " ".join(words[: max(1, round(share * len(words)))])
