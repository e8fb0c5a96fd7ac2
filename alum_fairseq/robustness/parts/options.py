"""Options that say how much is done: their defaults are smaller with ``--quick``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from alum_fairseq.errors import UsageError


@dataclass(frozen=True)
class _Default:
    full: Any
    quick: Any


class _AtLeast(argparse.Action):
    """Takes a number that is large enough.

    Raises:
        UsageError: it is not.
    """

    def __init__(self, *args: Any, least: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self._least = least

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if values < self._least:
            option = self.option_strings[0]
            raise UsageError(f"{option} is {values}: it must be {self._least} or more")
        setattr(namespace, self.dest, values)


def add_effort(group: Any, option: str, full: Any, quick: Any, text: str, **more: Any) -> None:
    """Give a group of options a number of which less is done with ``--quick``.

    Args:
        group: of argparse.
        option: its name.
        full: the default.
        quick: the default with ``--quick``; lists if the option takes several values.
        text: what it is.
        more: for ``add_argument``; or ``least``, the smallest value of a whole number.
    """
    if isinstance(full, list):
        more["nargs"] = "+"
    if "least" in more:
        more = {"type": int, "metavar": "N", "action": _AtLeast, **more}
    shown = [" ".join(map(str, each)) if "nargs" in more else each for each in (full, quick)]
    group.add_argument(
        option,
        default=_Default(full, quick),
        help=f"{text} (default: {shown[0]} [{shown[1]}])",
        **more,
    )


def check_share(option: str, share: float) -> None:
    """Raise a UsageError, which begins with the option, unless this is a share of the words."""
    if not 0 < share <= 1:
        raise UsageError(f"{option} {share:g}: a share of the words is above 0 and at most 1")


def resolve(options: argparse.Namespace) -> None:
    """Put the numbers in where the options are silent."""
    for name, value in vars(options).items():
        if isinstance(value, _Default):
            setattr(options, name, value.quick if options.quick else value.full)
