"""The examples as they are: what every other part is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.part import Measure, Part, Records, register_part
from alum_fairseq.robustness.statistics import Columns
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record

_ASKED_TWICE = 8  # examples of a chunk


@register_part("clean")
class Clean(Part):
    """The model's answers to the unchanged examples, and how good they are."""

    by_name = False  # it is always run
    rank = 0

    @override
    def examples(self, data: Data) -> Sequence[Example]:
        return data.examples

    @override
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        asked = [(example, example.texts) for example in examples]
        records = [verdict.record() for verdict in subject.verdicts(asked)]
        for record, again in zip(records, subject.verdicts(asked[:_ASKED_TWICE]), strict=False):
            record["steady"] = math.isclose(again.loss, record["loss"], rel_tol=0.01, abs_tol=1e-3)
        return records

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        problem = records.problem
        regression = not problem.categorical
        right = "Predictions near enough to the answer" if regression else "Right answers"
        meaning = f"{right}, on {len(records.examples)} unchanged examples."
        yield self.accuracy(records, records.accuracy, meaning)
        yield from self.shares(records)
        if regression:
            yield from self._correlations(_paired(records))
        if problem.name == "classification":
            yield from self._of_classes(_paired(records), problem.labels)
        if problem.name != "span_prediction":  # there no probability is left for a long answer
            unit, meaning = ("nats", "Minus the logarithm of the right answer's probability.")
            if regression:
                unit, meaning = ("", "The squared error.")
            yield self.measure(
                "loss", "Loss", meaning,
                statistics.mean, records.columns("loss"), unit=unit, better="lower",
            )  # fmt: skip
        if not regression:
            yield self.measure(
                "ece", "Calibration error",
                "How far the model's confidence is from its accuracy, over "
                f"{statistics.BINS} bins of confidence (expected calibration error; it comes out "
                "too large on few examples, and so does its interval).",
                statistics.calibration_error, self.confidence(records),
                is_share=False, better="lower",
            )  # fmt: skip

    def _correlations(self, columns: list[Columns]) -> Iterator[Measure]:
        yield self.measure(
            "pearson", "Pearson",
            "Linear correlation of predictions and answers.",
            statistics.pearson, columns, is_share=False,
        )  # fmt: skip
        yield self.measure(
            "spearman", "Spearman",
            "Correlation of the ranks of predictions and answers.",
            statistics.spearman, columns, is_share=False,
        )  # fmt: skip

    def _of_classes(self, columns: list[Columns], labels: Sequence[str]) -> Iterator[Measure]:
        yield self.measure(
            "mcc", "Matthews correlation",
            "Correlation of predictions and answers; 0 is what blind guessing gives.",
            statistics.matthews(len(labels)), columns, is_share=False,
        )  # fmt: skip
        of = f"of {labels[1]}" if len(labels) == 2 else "mean over the classes"
        yield self.measure(
            "f1", f"F1, {of}",
            "Harmonic mean of precision and recall.",
            statistics.f1(len(labels)), columns, is_share=False,
        )  # fmt: skip

    @override
    def confidence(self, records: Records) -> list[Columns]:
        if not records.problem.categorical:
            return []
        return records.columns("confidence", lambda record: float(record["correct"]))

    @override
    def warnings(self, model: str, records: Records) -> Iterator[str]:
        twice = [record["steady"] for record in records.every() if "steady" in record]
        if unsteady := len(twice) - sum(twice):
            yield (
                f"{model}: asked twice, it answers {unsteady} of {len(twice)} examples differently "
                "(dropout that is left on, sampling). Attacks that trust its answers then look "
                "weaker than they are (Athalye et al. 2018)."
            )
        for number, answer in enumerate(only_answers(records), start=1):
            if answer is not None:
                yield (
                    f"{model}, checkpoint {number}: predicts "
                    f"{'no answer' if answer == '' else answer} for every example. What never "
                    "changes its answer looks robust, but knows nothing."
                )


def only_right(records: Records) -> str | None:
    """The answer that is right for every example; None if there are several."""
    return _only(records, [example.answer for example in records.examples])


def only_answers(records: Records) -> list[str | float | None]:
    """For each checkpoint the answer that it gives to every example; None if there are several.

    None, too, where no model could know another: all examples have the same right answer.
    """
    if only_right(records) is not None:
        return [None] * len(records.checkpoints)
    return [_only(records, [one["prediction"] for one in found]) for found in records.checkpoints]


def _only(records: Records, answers: Sequence[Any]) -> Any:
    found = {*answers}
    if records.problem.name == "sequence_tagging":
        found = {tag for each in found for tag in each.split()}
    return found.pop() if len(found) == 1 < len(answers) else None


def _paired(records: Records) -> list[Columns]:
    """For each checkpoint predictions and answers, as numbers."""
    number = records.problem.answer
    wanted = np.array([number(example.answer) for example in records.examples])
    found = records.columns(lambda record: number(record["prediction"]))
    return [(column, wanted) for (column,) in found]
