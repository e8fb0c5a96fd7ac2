"""What attacks that change words have in common: their options, records and measures."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.attacks.greedy import Attempt, Limits
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import add_effort
from alum_fairseq.robustness.parts.part import Measure, Part, Records
from alum_fairseq.robustness.types import Record, Texts, Verdict

_WORST = 20


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
            help="numbers of the texts of an example that may be edited, from 1 (default: all)",
        )
        group.add_argument(
            "--max-edits",
            type=float,
            default=Limits().max_edits,
            metavar="SHARE",
            help="share of the words that an attack may replace (default: %(default)s)",
        )
        text = "texts that an attack may ask the model about"
        add_effort(group, "--max-queries", 200, 60, text, least=1)

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        meaning = "What is left when words are changed until the model fails."
        yield self.accuracy(records, records.accuracy, meaning)
        yield self.measure(
            "success", "Success rate",
            "The share of the rightly answered examples that the attack breaks.",
            statistics.ratio, records.columns(_broken, _was_right), better="lower",
        )  # fmt: skip
        yield self.measure(
            "queries", "Queries per example",
            "How often the attack asks the model, for an example that was right.",
            statistics.ratio, records.columns("queries", _was_right), unit="", better=None,
        )  # fmt: skip

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
                        "answer": example.answer,
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
    said = asdict(verdict)
    del said["loss"]
    return {"texts": list(texts), **said, "edits": edits, "queries": queries}


def editable_texts(options: Namespace, data: Data) -> list[int] | None:
    """What ``--edit`` says, counted from 0; None: all.

    Raises:
        UsageError: an example has no text of such a number.
    """
    if options.edit is None:
        return None
    if min(options.edit) < 1:
        raise UsageError(f"--edit is {min(options.edit)}: the texts of an example count from 1")
    texts = len(data.examples[0].texts)
    beyond = [number for number in options.edit if number > texts]
    if beyond:
        raise UsageError(
            f"--edit is {beyond[0]}: an example has {texts} text{'' if texts == 1 else 's'}"
        )
    return sorted({number - 1 for number in options.edit})
