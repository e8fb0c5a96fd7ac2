"""Whether our criteria or tasks are in use: without them fairseq trains as it always did."""

from __future__ import annotations

from typing import Any

PACKAGE = __name__.partition(".")[0]


def is_ours(kind: type) -> bool:
    """Whether a class is one of this package's, or extends one."""
    return any(base.__module__.partition(".")[0] == PACKAGE for base in kind.__mro__)


def trains_ours(trainer: Any) -> bool:
    """Whether fairseq's trainer has a task or a criterion of ours."""
    return is_ours(type(trainer.task)) or is_ours(type(trainer.get_criterion()))
