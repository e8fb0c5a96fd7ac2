"""Runs that are killed, and whether two of them ended alike, times aside."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils

TIMES = {"wps", "ups", "wall", "train_wall"}


def last_state(save_dir: Path) -> dict[str, Any]:
    return checkpoint_utils.load_checkpoint_to_cpu(str(save_dir / "checkpoint_last.pt"))


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Nested containers, equal to the bit."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{place}/{index}")
    else:
        assert one == other or one != one, place


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint less the times in it."""
    kept = {key: state[key] for key in ("model", "last_optimizer_state")}
    kept["history"] = state["optimizer_history"][-1]  # before it, one for each other life
    extra = dict(state["extra_state"])
    del extra["previous_training_time"], extra["metrics"]
    meters = state["extra_state"]["metrics"]
    train = [meter for meter in meters["train"] if meter[1] not in TIMES]
    return {**kept, **extra, "train": train}


@dataclass(frozen=True)
class Killed:
    """What goes before a life of a run that a scheduler ends, at a place that its log tells.

    Attributes:
        at: what a line of the log says there.
        times: how often it is let be said; SIGKILL comes instead of the last.
    """

    at: str
    times: int = 1

    def __call__(self) -> None:
        make, said = logging.getLogRecordFactory(), 0

        def make_or_die(*args: Any, **kwargs: Any) -> logging.LogRecord:
            nonlocal said
            record = make(*args, **kwargs)
            said += self.at in f"{record.name} {record.getMessage()}"
            if said == self.times:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            return record

        logging.setLogRecordFactory(make_or_die)


def covering(
    factors: dict[str, dict[str, Any]], forbidden: Callable[[dict[str, str]], bool]
) -> Iterator[dict[str, str]]:
    """Rows of one value for each factor, in which every two values that may meet do meet.

    Greedy: each row begins with a pair that is left, and takes of every other factor the value
    that meets most of the pairs that are left.
    """
    names = list(factors)

    def pairs(row: dict[str, str]) -> set[tuple[str, str, str, str]]:
        chosen = [name for name in names if name in row]
        return {(a, row[a], b, row[b]) for a, b in combinations(chosen, 2)}

    left = {
        (a, one, b, other)
        for a, b in combinations(names, 2)
        for one, other in product(factors[a], factors[b])
        if not forbidden({a: one, b: other})
    }
    while left:
        a, one, b, other = min(left)
        row = {a: one, b: other}
        for name in names:
            if name not in row:
                rows = [{**row, name: value} for value in factors[name]]
                row = max(
                    (row for row in rows if not forbidden(row)), key=lambda r: len(pairs(r) & left)
                )
        left -= pairs(row)
        yield {name: row[name] for name in names}
