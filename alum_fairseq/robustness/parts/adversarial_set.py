"""Further labelled data that others made to be hard."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from typing_extensions import override

from alum_fairseq.data.tables import table_format
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import TokenProblem
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.examples import Data, sample
from alum_fairseq.robustness.parts.clean import Clean
from alum_fairseq.robustness.parts.part import Measure, Part, Records, register_part
from alum_fairseq.robustness.sets import read_set
from alum_fairseq.robustness.store import text_digest
from alum_fairseq.robustness.types import Example


@register_part("set")
@dataclass
class AdversarialSetPart(Part):
    """What the model says of a set, each variant another one."""

    content: Sequence[Example]
    variant: str = field(kw_only=True)
    by_name = False
    is_attack = False
    rank = 60
    group = "Adversarial sets"
    run = Clean.run

    @classmethod
    @override
    def add_options(cls, group: Any) -> None:
        group.add_argument(
            "--adversarial-set",
            nargs="+",
            default=[],
            metavar="[NAME=]FILE",
            help="further labelled files, laid out as the data; or anli:FILE, hans:FILE, "
            "advglue:FILE#TASK",
        )
        group.add_argument(
            "--map-labels",
            nargs="+",
            default=[],
            metavar="LABEL=LABELS",
            help="which of the model's labels are right where a set has this one",
        )

    @classmethod
    @override
    def from_options(cls, options: Namespace, data: Data) -> list[Part]:
        mapped = _mapped_labels(options)
        if mapped and isinstance(data.problem, TokenProblem):
            raise UsageError(f"--map-labels is for classes, not for {data.problem.answers}")
        sets: dict[str, Part] = {}
        for spec in options.adversarial_set:
            name, examples = read_set(
                spec, data.columns, data.label, table_format(options), data.problem, mapped
            )
            if name in sets:
                raise UsageError(
                    f"--adversarial-set {spec}: another one is called {name}: put NAME= before it"
                )
            data.predictor.check_inputs(len(examples[0].texts))
            drawn = _drawn(examples, options.examples, options.seed)
            sets[name] = cls(drawn, variant=name)
        return list(sets.values())

    @property
    @override
    def settings(self) -> dict[str, Any]:
        digest = text_digest([asdict(example) for example in self.content])
        return {"examples": f"{len(self.content)} of SHA-256 {digest[:16]}"}

    @override
    def examples(self, data: Data) -> Sequence[Example]:
        return self.content

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        meaning = f"Right answers on the set {self.variant}; an example counts as in clean data."
        usual = [
            self.accuracy(records, f"{records.accuracy} on {self.variant}", meaning),
            *self.shares(records, f" on {self.variant}"),
        ]
        questions = _questions(records.examples)
        if len(questions) == len(records.examples):
            yield from usual
            return
        places = {example.number: i for i, example in enumerate(records.examples)}
        rows = [[places[each.number] for each in variants] for variants in questions]
        ones = np.ones(len(places))
        for measure in usual:  # the variants of a question are no examples of their own
            yield replace(
                measure,
                meaning=f"{measure.meaning} Over {len(places)} variants of {len(rows)} questions.",
                statistic=statistics.ratio,
                checkpoints=[
                    [np.array([each[row].sum() for row in rows]) for each in (*columns, ones)[:2]]
                    for columns in measure.checkpoints
                ],
            )
        for key, share in (("correct", records.accuracy), ("f1", "F1")):
            columns = records.columns(lambda record, key=key: float(record[key]))
            yield self.measure(
                f"worst.{key}", f"{share} on {self.variant}, worst variants",
                "Of each question the variant that the model answers worst, as the authors of "
                "adversarial SQuAD count.",
                statistics.mean,
                [[np.array([column[row].min() for row in rows])] for (column,) in columns],
            )  # fmt: skip


# An id of SQuAD. Jia and Liang (2017, arXiv 1707.07328) add a suffix for each variant.
_SQUAD_ID = re.compile("([0-9a-f]{24})-")


def _questions(examples: Sequence[Example]) -> list[list[Example]]:
    """The variants of each question."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        variant = _SQUAD_ID.match(f"{example.name}-")
        found.setdefault(variant[1] if variant else str(example.number), []).append(example)
    return list(found.values())


def _drawn(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """About so many (0: all), drawn at random; all variants of a question, or none."""
    questions = _questions(examples)
    share = most and max(1, most * len(questions) // len(examples))
    return [example for variants in sample(questions, share, seed) for example in variants]


def _mapped_labels(options: Namespace) -> dict[str, str] | None:
    mapped = {}
    for each in options.map_labels:
        theirs, equals, ours = each.partition("=")
        if not (theirs and equals and ours):
            raise UsageError(f"--map-labels {each}: it must be LABEL=LABEL[,LABEL...]")
        mapped[theirs] = ours
    if mapped and not options.adversarial_set:
        raise UsageError("--map-labels is for --adversarial-set, which is not given")
    return mapped or None
