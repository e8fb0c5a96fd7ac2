"""Typing mistakes of every kind, at several rates."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override

from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.attacks.noise import NOISES, add_noise
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import add_effort, check_share
from alum_fairseq.robustness.parts.part import Axis, Curve, Measure, Part, Records, register_part
from alum_fairseq.robustness.parts.word_attack import editable_texts, outcome
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record


@register_part("noise")
@dataclass
class Noise(Part):
    """The accuracy that is left when a share of the words is misspelt, at several rates."""

    rates: Sequence[float]
    seed: int
    editable: Collection[int] | None
    rank = 20
    group = "Character noise"
    axis = Axis(
        "misspelt words (%)",
        "The share of {right} (up) when more and more words are misspelt (right), the mean "
        f"over the kinds of mistakes: {', '.join(sorted(NOISES))}. Bands: 95% intervals.",
        scale=100,
    )

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        text = "shares of the words with a typing mistake"
        add_effort(group, "--noise-rates", [0.1, 0.2, 0.4], [0.2], text, type=float, metavar="RATE")

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        for rate in options.noise_rates:
            check_share("--noise-rates has", rate)
        return [cls(options.noise_rates, options.seed, editable_texts(options, data))]

    @override
    def examples(self, data: Data) -> Sequence[Example]:
        return data.examples

    @property
    @override
    def cost(self) -> float:
        return len(NOISES) * len(self.rates)

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        records: list[Record] = [{} for _ in examples]
        for kind in NOISES:
            for rate in self.rates:
                noised = [
                    add_noise(
                        *(example.texts, kind, rate, self.seed, self.editable),
                        subject.problem.fixed(example.texts, example.answer),
                    )
                    for example in examples
                ]
                asked = [(one, texts) for one, (texts, _) in zip(examples, noised, strict=True)]
                verdicts = subject.verdicts(asked)
                for record, (texts, edits), verdict in zip(records, noised, verdicts, strict=True):
                    record[f"{kind} {rate:g}"] = outcome(texts, verdict, edits, 1)
        return records

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        kinds, rates, share = sorted(NOISES), sorted(set(self.rates)), records.accuracy
        middle = rates[len(rates) // 2]

        def left(kinds: list[str], rate: float, key: str, what: str, of: str) -> Measure:
            return self.measure(
                key, f"{share}, {what}",
                f"What is left when {100 * rate:g}% of the words are misspelt{of}.",
                statistics.mean,
                records.columns(_correct(kinds, rate)),
                main=rate == middle and len(kinds) > 1,
            )  # fmt: skip

        for rate in rates:
            of = f", mean over {', '.join(kinds)}"
            yield left(kinds, rate, f"{rate:g}", f"{100 * rate:g}% of words", of)
        for kind in kinds:
            key, what = f"{kind}.{middle:g}", f"{kind}, {100 * middle:g}%"
            yield left([kind], middle, key, what, " by this kind alone")
        for rate in rates:
            yield from self.shares(records, f", {100 * rate:g}% of words", f".{rate:g}", _at(rate))

    @override
    def warnings(self, model: str, records: Records) -> Iterator[str]:
        found = records.every()
        idle = [
            f"{kind} {100 * rate:g}%"
            for rate in sorted(set(self.rates))
            for kind in sorted(NOISES)
            if sum(not one[f"{kind} {rate:g}"]["edits"] for one in found) > 0.1 * len(found)
        ]
        if idle:
            yield (
                f"{model}, noise: more than a tenth of the examples had nothing to misspell for "
                f"{', '.join(idle)} (too few words for the share, or no letters that such a "
                "mistake changes). They are as in clean data: the model only looks robust there."
            )

    @override
    def curves(self, records: Records, clean: Records) -> Iterator[Curve]:
        rates = sorted(set(self.rates))
        without = clean.on(records.examples).columns("correct")
        misspelt = records.columns(*(_correct(NOISES, rate) for rate in rates))
        columns = [first + rest for first, rest in zip(without, misspelt, strict=True)]
        yield Curve([0.0, *rates], statistics.means, columns)


def _at(rate: float) -> Callable[[Record], list[Record]]:
    """Of a record, that of each kind of mistakes at this rate."""
    return lambda record: [record[f"{kind} {rate:g}"] for kind in NOISES]


def _correct(kinds: Iterable[str], rate: float) -> Callable[[Record], float]:
    """Of a record, how many kinds of mistakes at this rate leave the answer right: a share."""
    return lambda record: np.mean([record[f"{kind} {rate:g}"]["correct"] for kind in kinds])
