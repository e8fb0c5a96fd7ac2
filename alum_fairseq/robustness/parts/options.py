"""Options for how much is measured: their defaults are smaller with ``--quick``."""

from __future__ import annotations

import argparse
from typing import Any

from alum_fairseq.errors import UsageError


def add_effort(
    group: Any,
    option: str,
    full: Any,
    quick: Any,
    text: str,
    least: int | None = None,
    **more: Any,
) -> None:
    """Add an option for a number that is smaller with ``--quick``.

    Args:
        full: the default; a list if the option takes several values.
        quick: the default with ``--quick``.
        least: the smallest value, of a whole number.
        more: for ``add_argument``.
    """
    if isinstance(full, list):
        more["nargs"] = "+"
    if least is not None:
        more = {"type": int, "metavar": "N", **more}
    shown = [" ".join(map(str, each)) if "nargs" in more else each for each in (full, quick)]
    with_quick = "" if full == quick else f", with --quick {shown[1]}"
    text = f"{text} (default: {shown[0]}{with_quick})"
    name = group.add_argument(option, help=text, **more).dest
    efforts = group.get_default("efforts") or {}
    group.set_defaults(efforts={**efforts, name: (option, full, quick, least)})


def check_share(option: str, share: float) -> None:
    """Raise a UsageError, which begins with the option, unless this is a share of the words."""
    if not 0 < share <= 1:
        raise UsageError(f"{option} {share:g}: a share of the words is above 0 and at most 1")


def resolve(options: argparse.Namespace) -> None:
    """Give the options that were not given their defaults, or what ``--standard`` has for them.

    Raises:
        UsageError: one that was given is too small.
    """
    standard = vars(options).pop("standards").get(options.standard, {})
    for name, (option, full, quick, least) in vars(options).pop("efforts").items():
        value = getattr(options, name)
        if value is None:
            usual = quick if options.quick else full
            setattr(options, name, standard.get(name, usual))
        elif least is not None and value < least:
            raise UsageError(f"{option} is {value}: it must be {least} or more")
