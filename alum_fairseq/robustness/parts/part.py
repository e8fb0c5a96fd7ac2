"""What a part of a measurement is: its records, and all that a report says of them.

A part is one class in one file. It is registered under a name, and from then on the command plans
it, runs it and resumes it, and the report shows its measures, curves, warnings and worst examples.
Nothing else in the package knows a part by name.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar, TypeVar

import numpy as np

from alum_fairseq.errors import UsageError
from alum_fairseq.problems import SupervisedProblem
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.statistics import Columns, Statistic
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Record


@dataclass(frozen=True)
class Records:
    """The records of one part: for each checkpoint, one of each example."""

    problem: SupervisedProblem
    examples: Sequence[Example]
    checkpoints: Sequence[Sequence[Record]]

    def __getitem__(self, checkpoints: slice) -> Records:
        return replace(self, checkpoints=self.checkpoints[checkpoints])

    @property
    def accuracy(self) -> str:
        """What the share of right answers is called."""
        return self.problem.share_right

    def columns(self, *reads: str | Callable[[Record], Any]) -> list[Columns]:
        """For each checkpoint its columns: each a key of the records, or a function of a record."""
        functions = [read if callable(read) else itemgetter(read) for read in reads]
        return [
            tuple(np.array(list(map(read, records))) for read in functions)
            for records in self.checkpoints
        ]

    def every(self) -> list[Record]:
        """The records of all checkpoints, one after the other."""
        return list(chain.from_iterable(self.checkpoints))

    def on(self, examples: Sequence[Example]) -> Records:
        """Those of some of the examples."""
        places = {example.number: place for place, example in enumerate(self.examples)}
        chosen = [places[example.number] for example in examples]
        found = [[records[place] for place in chosen] for records in self.checkpoints]
        return replace(self, examples=examples, checkpoints=found)


@dataclass(frozen=True)
class Measure:
    """A number of every model.

    Attributes:
        key: its name for programs.
        title: its name for readers.
        group: the heading that it stands under.
        checkpoints: the columns of each, from which it is computed; all of the same examples.
        unit: ``%`` multiplies it by 100.
        is_share: whether it is, in ``%``, a share of what is counted in the examples.
        better: ``higher``, ``lower``, or None.
        main: whether it belongs in the overview: a share of the examples, in percent.
        undefined: what is shown in place of a value that is infinite or undefined.
    """

    key: str
    title: str
    group: str
    meaning: str
    statistic: Statistic
    checkpoints: Sequence[Columns]
    unit: str = "%"
    is_share: bool = True
    better: str | None = "higher"
    main: bool = False
    undefined: str = "-"


@dataclass(frozen=True)
class Curve:
    """A share of the examples, as a function of something.

    Attributes:
        statistic: gives one share for each place in ``x``, these first.
        detail: what tells it from other curves of its part.
    """

    x: Sequence[float]
    statistic: Statistic
    checkpoints: Sequence[Columns]
    detail: str = ""


@dataclass(frozen=True)
class Axis:
    """How the curves of a part are drawn: the horizontal axis, and what is said of it.

    On a logarithmic one the first place is 0, and is drawn as a dot. ``scale`` is of a linear one.
    In the caption, ``{right}`` stands for what the curves are a share of, such as right answers.
    """

    label: str
    caption: str
    scale: float = 1.0
    logarithmic: bool = False


@dataclass
class Part(ABC):
    """A measurement; a dataclass whose fields are its settings.

    Its ``kind`` is given by :func:`register_part`. Several parts of one kind differ in ``variant``.

    Attributes:
        by_name: whether ``--parts`` chooses it; without the option, all that are installed are
            run. Else its own options do.
        optional: whether it needs what may not be installed.
        is_attack: whether it changes the examples of the data, and so counts among all attacks.
        rank: its place in a report, the smallest first.
        label: its name for readers, where that is neither variant nor kind.
        group: the heading of its measures and curves; ``{}`` stands for its name for readers.
        axis: of its curves, if it has any.
        note: what a reader must know of how it was set up; empty: nothing.
        cost: what an example costs, roughly, in forward passes: for the time that is left. Where
            it follows from the settings, a property.
    """

    kind: ClassVar[str]
    by_name: ClassVar[bool] = True
    optional: ClassVar[bool] = False
    is_attack: ClassVar[bool] = True
    rank: ClassVar[int] = 50
    label: ClassVar[str] = ""
    group: ClassVar[str] = ""
    axis: ClassVar[Axis] = Axis("", "")
    note = ""
    cost = 1.0
    variant = ""

    @property
    def name(self) -> str:
        """Its key among the records, on disk, and in ``report.json``."""
        return f"{self.kind}:{self.variant}" if self.variant else self.kind

    # What is planned.

    @classmethod  # noqa: B027 (most have none)
    def add_options(cls, group: Any) -> None:
        """Give a group of options its own; those of a base class are added once."""

    @classmethod
    def from_options(cls, options: argparse.Namespace, data: Data) -> list[Part]:
        """The parts of this kind that the options ask for, should the kind be chosen.

        Raises:
            UsageError: an option is out of its range.
        """
        return [cls()]

    def check(self) -> None:  # noqa: B027 (most need nothing)
        """Raise a UsageError unless what it needs is installed."""

    def examples(self, data: Data) -> Sequence[Example]:
        """The examples that it looks at."""
        return data.attacked

    # How it is run.

    @property
    def settings(self) -> dict[str, Any]:
        """What its records depend on, besides model and examples: all fields that are compared."""
        return _compared(self)

    @abstractmethod
    def run(self, subject: Subject, examples: Sequence[Example]) -> list[Record]:
        """A record of each example, fit for JSON."""

    # What a report says of it.

    @abstractmethod
    def measures(self, records: Records) -> Iterator[Measure]:
        """Its numbers, in the order of reading."""

    def curves(self, records: Records, clean: Records) -> Iterator[Curve]:
        """Its curves; ``clean`` are the records of the unchanged examples."""
        return iter(())

    def warnings(self, model: str, records: Records) -> Iterator[str]:
        """Why the numbers of a model, of which these are the records, may mislead."""
        return iter(())

    def worst(self, model: str, records: Records, clean: Records) -> list[dict[str, Any]]:
        """The examples on which a model, of which these are the records, fails worst."""
        return []

    def confidence(self, records: Records) -> list[Columns]:
        """For each checkpoint how sure it is, and whether it is right; empty: not to be drawn."""
        return []

    # What subclasses make measures with.

    def measure(self, key: str, title: str, *given: Any, **more: Any) -> Measure:
        """A measure under the heading of the part; the rest is that of a :class:`Measure`."""
        return Measure(f"{self.name}.{key}", title, heading_of(self.name), *given, **more)

    def accuracy(self, records: Records, title: str, meaning: str) -> Measure:
        """The share of the examples that are right; records have ``correct``."""
        columns = records.columns("correct")
        return self.measure("accuracy", title, meaning, statistics.mean, columns, main=True)

    def shares(
        self,
        records: Records,
        title: str = "",
        key: str = "",
        of: Callable[[Record], Sequence[Record]] | None = None,
    ) -> Iterator[Measure]:
        """The further metrics of spans and of tags.

        Args:
            records: of the part.
            title: what is added to the titles.
            key: likewise, to the keys.
            of: from a record to those that have a verdict's details; None: to itself.
        """
        parts = of or (lambda record: [record])
        for share in getattr(records.problem, "shares", ()):

            def summed(factors: Mapping[str, float]) -> Callable[[Record], float]:
                each = factors.items()
                return lambda record: sum(
                    f * one[name] for one in parts(record) for name, f in each
                )

            below = summed(share.below) if share.below else lambda record: len(parts(record))
            yield self.measure(
                share.key + key, share.title + title, share.meaning,
                statistics.ratio, records.columns(summed(share.above), below),
            )  # fmt: skip


def _compared(value: Any) -> Any:
    """A value whose dataclasses are dicts of the fields that are compared."""
    if not is_dataclass(value):
        return value
    return {one.name: _compared(getattr(value, one.name)) for one in fields(value) if one.compare}


_PartType = TypeVar("_PartType", bound=type[Part])

PARTS: dict[str, type[Part]] = {}


def register_part(kind: str) -> Callable[[_PartType], _PartType]:
    """Add a class to :data:`PARTS` under a name; a decorator, for users' own as well.

    Raises:
        UsageError: the name is taken, or has a blank or a colon.
    """
    if kind in PARTS or not kind or set(kind) & set(": "):
        raise UsageError(f"a part cannot be called {kind!r}: the name is taken, or not one word")

    def register(part: _PartType) -> _PartType:
        part.kind = kind
        PARTS[kind] = part
        return part

    return register


# A report that is read from disk knows parts by name alone.


def _kind_and_variant(name: str) -> tuple[type[Part], str, str]:
    kind, _, variant = name.partition(":")
    return PARTS.get(kind, Part), kind, variant


def title_of(name: str) -> str:
    """A part's name for readers."""
    part, kind, variant = _kind_and_variant(name)
    return variant or part.label or kind


def heading_of(name: str) -> str:
    """The heading of a part's measures and curves."""
    title = title_of(name)
    group = _kind_and_variant(name)[0].group
    return group.format(title) if group else title[:1].upper() + title[1:]


def curve_name(part: Part, curve: Curve) -> str:
    """The key of a curve in a report."""
    return f"{part.name} {curve.detail}" if curve.detail else part.name


def curve_look(name: str) -> tuple[str, Axis]:
    """The title of a curve, and how it is drawn, from its key in a report."""
    part, _, detail = name.partition(" ")
    heading, axis = heading_of(part), _kind_and_variant(part)[0].axis
    return f"{heading}: {detail}" if detail else heading, axis
