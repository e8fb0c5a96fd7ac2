"""From lines of results to numbers: means, intervals, paired comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import ledger
import numpy as np
from scipy.stats import t as student

Line = Mapping[str, Any]
Read = Callable[[Line], float | None]

LEVEL = 0.95
_TRIALS = 20_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval; NaN where the ends are not known."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """One method minus another, over pairs of runs that share task and seed.

    Attributes:
        estimate: of the mean over tasks of the mean over seeds.
        p: by sign-flip randomisation of the pairs, two-sided; NaN with fewer than two.
    """

    estimate: Estimate
    p: float


def measure(name: str) -> Read:
    """Reads a measure of the test split; ``metric`` is the task's own."""

    def read(line: Line) -> float | None:
        return line["test"].get(line["metric"] if name == "metric" else name)

    return read


def field(name: str) -> Read:
    """Reads an entry of a line."""
    return lambda line: line.get(name)


def current(lines: Iterable[Line], study: str) -> list[Line]:
    """The lines of a study that are done, and comparable.

    Of a cell that was run twice the last. Of a method whose options, recipe or measuring were
    changed between runs on a task, those that were run as the last one was.
    """
    last: dict[tuple[Any, ...], Line] = {}
    settings: dict[tuple[str, str], str] = {}
    for line in lines:
        if line["study"] == study and ledger.is_done(line):
            cell = line["task"], line["method"], line["seed"]
            last.pop(cell, None)
            last[cell] = line
            settings[cell[:2]] = _settings(line)
    return [line for cell, line in last.items() if _settings(line) == settings[cell[:2]]]


def _settings(line: Line) -> str:
    names = ("resolved", "recipe", "size", "factor", "effort", "revision")
    return json.dumps([line.get(name) for name in names], sort_keys=True)


class Results:
    """Runs that are done.

    Args:
        lines: at most one of a task, method and seed.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        self.tasks = list(dict.fromkeys(line["task"] for line in self.lines))
        self.methods = list(dict.fromkeys(line["method"] for line in self.lines))

    def only(
        self, tasks: Iterable[str] | None = None, methods: Iterable[str] | None = None
    ) -> Results:
        """The same of some tasks and methods; None: all."""
        tasks = set(self.tasks if tasks is None else tasks)
        methods = set(self.methods if methods is None else methods)
        return Results(
            line for line in self.lines if line["task"] in tasks and line["method"] in methods
        )

    def of(self, method: str, task: str) -> dict[int, Line]:
        """The run of each seed."""
        return {
            line["seed"]: line
            for line in self.lines
            if (line["method"], line["task"]) == (method, task)
        }

    def values(self, method: str, task: str, read: Read) -> dict[int, float]:
        """A number of each seed that has one."""
        found = {seed: read(line) for seed, line in self.of(method, task).items()}
        return {seed: float(value) for seed, value in found.items() if _is_known(value)}

    def pairs(self, method: str, baseline: str, task: str, read: Read) -> list[tuple[float, float]]:
        """A number of a method and of a baseline, for each seed: see :meth:`line_pairs`."""
        both = [(read(a), read(b)) for a, b in self.line_pairs(method, baseline, task)]
        return [(float(a), float(b)) for a, b in both if _is_known(a) and _is_known(b)]

    def line_pairs(self, method: str, baseline: str, task: str) -> list[tuple[Line, Line]]:
        """The lines of a method and of a baseline, for each seed that both have with one recipe.

        Both on a GPU, or neither: these round products otherwise, and a run on the one differs from
        the same run on the other by as much as by another seed.
        """
        lines, others = self.of(method, task), self.of(baseline, task)
        return [
            (line, others[seed])
            for seed, line in lines.items()
            if seed in others and _trained_alike(line, others[seed])
        ]

    def mean(self, method: str, read: Read) -> Estimate:
        """The mean over tasks of the mean over seeds, of the tasks that it was run on."""
        groups = [list(self.values(method, task, read).values()) for task in self.tasks]
        return mean_of_groups([group for group in groups if group])

    def difference(self, method: str, baseline: str, read: Read) -> Difference:
        """A method minus a baseline, over the tasks and seeds that both have."""
        found = [self.pairs(method, baseline, task, read) for task in self.tasks]
        groups = [pairs for pairs in found if pairs]
        differences = [[ours - theirs for ours, theirs in pairs] for pairs in groups]
        return Difference(mean_of_groups(differences), paired_p(groups))


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _trained_alike(line: Line, other: Line) -> bool:
    on_gpu = [bool(one["machine"]["gpu"]) for one in (line, other)]
    return on_gpu[0] == on_gpu[1] and all(
        line.get(name) == other.get(name) for name in ("recipe", "size")
    )


def mean_of_groups(groups: Sequence[Sequence[float]]) -> Estimate:
    """The mean of the means of independent groups, each with a variance of its own.

    The interval is Student's; with several groups the degrees of freedom are Welch and
    Satterthwaite's. Without bounds where a group has a single value.
    """
    if not groups:
        return Estimate(math.nan, math.nan, math.nan, 0)
    means = [float(np.mean(group)) for group in groups]
    count = sum(map(len, groups))
    value = float(np.mean(means))
    if min(map(len, groups)) < 2:
        return Estimate(value, math.nan, math.nan, count)
    parts = [float(np.var(group, ddof=1)) / len(group) for group in groups]
    total = sum(parts)
    if total == 0:
        return Estimate(value, value, value, count)
    freedom = total**2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True)
    )
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total) / len(groups)
    return Estimate(value, value - half, value + half, count)


def paired_p(groups: Sequence[Sequence[tuple[float, float]]]) -> float:
    """p that the runs of a pair differ in the mean over groups (tasks) of their mean.

    The paired approximate randomisation test (Noreen 1989; Riezler and Maxwell 2005,
    https://aclanthology.org/W05-0908/): were the methods alike, which run of a pair is whose would
    be arbitrary, so they are swapped at random. With n pairs p is at least about 2 / 2**n: five
    seeds of one task cannot fall below 0.06, of four tasks can.
    """
    differences = np.array([right - left for group in groups for left, right in group], float)
    if len(differences) < 2:
        return math.nan
    differences /= np.concatenate([np.full(len(group), len(group)) for group in groups])
    swapped = np.random.default_rng([1, 0]).integers(
        2, size=(_TRIALS, len(differences)), dtype=np.int8
    )
    by_chance = np.abs(np.where(swapped, -differences, differences).sum(-1))
    # Equal but for rounding is equal.
    smaller = (by_chance < abs(differences.sum()) * (1 - 1e-9) - 1e-12).sum()
    return float((1 + _TRIALS - smaller) / (1 + _TRIALS))
