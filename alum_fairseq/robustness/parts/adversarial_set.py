"""Further labelled data that others made to be hard."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from alum_fairseq.data.tables import table_format
from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.examples import Data, sample
from alum_fairseq.robustness.parts.clean import Clean
from alum_fairseq.robustness.parts.part import Measure, Part, Records, register_part
from alum_fairseq.robustness.sets import read_set
from alum_fairseq.robustness.types import Example


@register_part("set")
@dataclass
class AdversarialSetPart(Part):
    """What the model says of a set, each variant another one."""

    content: Sequence[Example] = field(compare=False)
    variant: str = field(kw_only=True, compare=False)
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
            sets[name] = cls(sample(examples, options.examples, options.seed), variant=name)
        return list(sets.values())

    @override
    def examples(self, data: Data) -> Sequence[Example]:
        return self.content

    @override
    def measures(self, records: Records) -> Iterator[Measure]:
        meaning = f"Right answers on the set {self.variant}; an example counts as in clean data."
        yield self.accuracy(records, f"{records.accuracy} on {self.variant}", meaning)


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
