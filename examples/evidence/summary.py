"""From lines of results to numbers: means, intervals, paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from alum_fairseq.robustness.statistics import randomization_test

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

    def scaled(self, factor: float) -> Estimate:
        """Times a number above zero."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.count)


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


class Results:
    """Lines of one study that are done.

    Args:
        lines: of any studies.
        study: which of them counts.
    """

    def __init__(self, lines: Iterable[Line], study: str) -> None:
        self.lines = [
            line for line in lines if line["study"] == study and line.get("status") == "done"
        ]
        self.tasks = list(dict.fromkeys(line["task"] for line in self.lines))
        self.methods = list(dict.fromkeys(line["method"] for line in self.lines))
        self.seeds = sorted({line["seed"] for line in self.lines})

    def only(self, tasks: Iterable[str]) -> Results:
        """The same of some tasks."""
        wanted = set(tasks)
        some = Results([], "")
        Results.__init__(some, [], "")
        some.lines = [line for line in self.lines if line["task"] in wanted]
        some.tasks = [task for task in self.tasks if task in wanted]
        some.methods = list(dict.fromkeys(line["method"] for line in some.lines))
        some.seeds = sorted({line["seed"] for line in some.lines})
        return some

    def values(self, method: str, task: str, read: Read) -> dict[int, float]:
        """A number of each seed; of a cell that was run twice the last."""
        found = {}
        for line in self.lines:
            if line["method"] == method and line["task"] == task:
                value = read(line)
                if value is not None and math.isfinite(value):
                    found[line["seed"]] = float(value)
        return found

    def missing(self) -> list[tuple[str, str, int]]:
        """Task, method and seed of cells that others of the study make one expect."""
        there = {(line["task"], line["method"], line["seed"]) for line in self.lines}
        return [
            (task, method, seed)
            for seed in self.seeds
            for task in self.tasks
            for method in self.methods
            if (task, method, seed) not in there
        ]

    def mean(self, method: str, read: Read) -> Estimate:
        """The mean over tasks of the mean over seeds, of the tasks that it was run on."""
        groups = [list(self.values(method, task, read).values()) for task in self.tasks]
        return mean_of_groups([group for group in groups if group])

    def difference(self, method: str, baseline: str, read: Read) -> Difference:
        """A method minus a baseline, over the tasks and seeds that both have."""
        ours, theirs = [], []
        for task in self.tasks:
            mine = self.values(method, task, read)
            other = self.values(baseline, task, read)
            common = [seed for seed in mine if seed in other]
            if common:
                ours.append([mine[seed] for seed in common])
                theirs.append([other[seed] for seed in common])
        groups = [
            [a - b for a, b in zip(left, right, strict=True)]
            for left, right in zip(ours, theirs, strict=True)
        ]
        return Difference(mean_of_groups(groups), paired_p(ours, theirs))


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


def paired_p(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """p that paired runs differ in the mean over groups (tasks) of their mean.

    The runs of a pair are swapped at random, as the randomisation test of the robustness report
    swaps examples. With n pairs p is at least about 2 / 2**n: five seeds of one task cannot fall
    below 0.06, of four tasks can.
    """
    pairs = sum(map(len, ours))
    if pairs < 2:
        return math.nan
    weights = np.concatenate([np.full(len(group), 1 / len(group)) for group in ours])
    columns = [np.concatenate(list(map(np.asarray, side))).astype(float) for side in (ours, theirs)]

    def statistic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return (values * weights).sum(-1)

    left, right = ([(column, weights)] for column in columns)
    return randomization_test(statistic, left, right, _TRIALS, seed=1)
