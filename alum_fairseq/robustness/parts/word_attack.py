"""What attacks that change words have in common: their options, records and measures."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.attacks.greedy import Attempt
from alum_fairseq.robustness.attacks.words import SplitText
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import add_effort
from alum_fairseq.robustness.parts.part import Measure, Part, Records, title_of
from alum_fairseq.robustness.types import Record, Texts, Verdict

_WORST = 20
USUAL_WORDS = 20  # of an example, for the time that is left

# What a paper allows an attack. TextDefender (Li et al. 2021, arXiv 2108.12777): 30% of the words
# (of AG News; give --max-edits 0.1 for IMDB), 50 candidates, as many queries as candidates times
# words. Its least similarity, 0.84, holds where --similarity-encoder names a measure.
STANDARDS: Mapping[str, Mapping[str, Any]] = {
    "textdefender": {
        "max_edits": 0.3,
        "max_candidates": 50,
        "max_queries": None,
        "min_similarity": 0.84,
    }
}


@dataclass
class WordAttack(Part):
    """Words are changed until the model fails. Records are those of :func:`attempted`."""

    seed: int
    editable: Collection[int] | None
    rank = 30
    group = "Attack on the words, {}"

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        group.add_argument(
            "--edit",
            nargs="+",
            type=int,
            metavar="TEXT",
            help="numbers of the texts of an example that may be edited, from 1 (default: all, but "
            "the question alone of a question and its context)",
        )
        group.add_argument(
            "--standard",
            choices=STANDARDS,
            help="constraints of a paper on attacks on words, in place of the defaults: 30%% of "
            "the words, 50 candidates a word, 50 queries for each word of the example",
        )
        group.set_defaults(standards=STANDARDS)
        text = "share of the words that an attack may replace"
        add_effort(group, "--max-edits", 0.2, 0.2, text, type=float, metavar="SHARE")
        text = "texts that an attack may ask the model about"
        add_effort(group, "--max-queries", 200, 60, text, least=1)

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        meaning = "What is left when words are changed until the model fails."
        yield self.accuracy(records, records.accuracy, meaning)
        yield from self.shares(records)
        yield self.measure(
            "success", "Success rate",
            "The share of the rightly answered examples that the attack breaks.",
            statistics.ratio, records.columns(_broken, _was_right), better="lower",
        )  # fmt: skip
        splits = [map(SplitText.of, example.texts) for example in records.examples]
        words = np.array([max(1, sum(len(split.words) for split in each)) for each in splits])
        yield self.measure(
            "changed", "Words changed",
            "The share of the words that differ, of the examples that the attack breaks.",
            statistics.ratio,
            [(hit * edits / words, hit) for hit, edits in records.columns(_broken, "edits")],
            better=None,
        )  # fmt: skip
        if all("similarity" in record for record in records.every()):
            yield self.measure(
                "similarity", "Similarity",
                "Of the texts before and after, for the examples that the attack breaks (cosine).",
                statistics.ratio,
                records.columns(lambda record: _broken(record) * record["similarity"], _broken),
                unit="", better=None,
            )  # fmt: skip
        yield self.measure(
            "queries", "Queries per example",
            "How often the attack asks the model, for an example that was right.",
            statistics.ratio, records.columns("queries", _was_right), unit="", better=None,
        )  # fmt: skip

    @override
    def warnings(self, model: str, records: Records) -> Iterator[str]:
        tried = [record for record in records.every() if _was_right(record)]
        idle = sum(record["queries"] <= 1 for record in tried)
        if idle > 0.1 * len(tried):
            yield (
                f"{model}, {title_of(self.name)}: it had nothing to try in {idle} of the "
                f"{len(tried)} examples that were right (no word may change, or none has a "
                "candidate). They count as right: the model only looks robust there."
            )

    def worst(self, model: str, records: Records, clean: Records) -> list[dict[str, Any]]:
        """The examples that the fewest edits broke, of these those that the model was surest of."""
        keys = ("texts", "prediction", "confidence")
        found = []
        pairs = zip(clean.on(records.examples).every(), records.every(), strict=True)
        for example, (said, record) in zip(cycle(records.examples), pairs, strict=False):
            if _broken(record):
                before = {**said, "texts": list(example.texts)}
                found.append(
                    {
                        "number": example.number,
                        "attack": self.name,
                        "model": model,
                        "answer": records.problem.shown(example.answer),
                        "original": {key: before[key] for key in keys},
                        "attacked": {key: record[key] for key in keys},
                        "edits": record["edits"],
                        "queries": record["queries"],
                    }
                )
        found.sort(key=_severity)
        once = {one["number"]: one for one in reversed(found)}  # of several seeds the worst
        return sorted(once.values(), key=_severity)[:_WORST]


def _was_right(record: Record) -> bool:
    """Whether the model was right before the attack: one that was wrong is left unchanged."""
    return record["correct"] or record["edits"] > 0


def _broken(record: Record) -> bool:
    return _was_right(record) and not record["correct"]


def _severity(one: Mapping[str, Any]) -> tuple[float, ...]:
    """Few edits first; then the surest, or of a regression what moved furthest; then the number."""
    before, after = one["original"], one["attacked"]
    if before["confidence"] is None:
        lost = abs(float(after["prediction"]) - float(before["prediction"]))
    else:
        lost = before["confidence"]
    return one["edits"], -lost, one["number"]


def attempted(attempt: Attempt) -> Record:
    """The record of an attack on words."""
    attacked = attempt.edits or attempt.verdict.correct  # else it was wrong to begin with
    queries = attempt.queries if attacked else 0
    return outcome(attempt.texts, attempt.verdict, len(attempt.edits), queries)


def outcome(texts: Texts, verdict: Verdict, edits: int, queries: int) -> Record:
    """The record of texts that were changed."""
    said = verdict.record()
    del said["loss"]
    return {"texts": list(texts), **said, "edits": edits, "queries": queries}


def editable_texts(options: Namespace, data: Data) -> list[int] | None:
    """What ``--edit`` says, counted from 0, else what the problem has; None: all.

    Raises:
        UsageError: an example has no text of such a number.
    """
    if options.edit is None:
        return data.problem.edited and list(data.problem.edited)
    if min(options.edit) < 1:
        raise UsageError(f"--edit is {min(options.edit)}: the texts of an example count from 1")
    texts = len(data.examples[0].texts)
    beyond = [number for number in options.edit if number > texts]
    if beyond:
        raise UsageError(
            f"--edit is {beyond[0]}: an example has {texts} text{'' if texts == 1 else 's'}"
        )
    return sorted({number - 1 for number in options.edit})
