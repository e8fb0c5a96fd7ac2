"""The exception for bad input, which every layer uses."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection
from types import TracebackType

try:
    from hydra.errors import CompactHydraException as _ShownByHydra
except ImportError:  # without fairseq, too
    _ShownByHydra = Exception

_MAX_LENGTH = 1500  # characters of a message; what matters comes well before


class UsageError(ValueError, RuntimeError, _ShownByHydra):
    """A setting or an input is wrong; the message names it, its value and what would be right.

    It is a ``ValueError`` for callers of the Python API, and also a ``RuntimeError`` because for
    every other exception fairseq's trainer writes a ``crash.pt`` into the save directory. It is one
    of hydra's as well, which ``fairseq-hydra-train`` shows by their message, without a traceback.
    """


class FieldError(UsageError):
    """One field of a dataclass has a wrong value.

    Attributes:
        name: of the field.
        problem: the rest of the message, which begins with the field's name.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem


def require(name: str, value: object, right: str, condition: bool) -> None:
    """Raise a :class:`FieldError` unless the condition on a field's value holds."""
    if not condition:
        raise FieldError(name, f"is {value!r}: it must be {right}")


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise a :class:`FieldError` unless a field's value is a whole number, and large enough."""
    whole = is_number(value) and isinstance(value, int) and value >= least
    require(name, value, f"a whole number, {least} or more", whole)


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise a :class:`FieldError` unless a field's value is one of its choices."""
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise FieldError(name, f"is {value!r}: it must be one of {', '.join(choices)}{hint}")


def did_you_mean(word: str, choices: Collection[str]) -> str:
    """The end of a message that a word is none of some choices: the nearest of them, if any."""
    same = [choice for choice in choices if _letters(choice) == _letters(word)]
    close = same or difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _letters(word: str) -> str:
    return "".join(filter(str.isalnum, word)).lower()


def is_number(value: object) -> bool:
    """Whether something is a number; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def one_line(error: BaseException) -> str:
    """The message of a library's error in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


def printable(error: BaseException) -> str:
    """The message in one line of at most 1,500 characters, with control characters escaped.

    Names and values from an untrusted file may contain anything, and be of any length.
    """
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(error))
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


def explained(error: BaseException) -> UsageError | None:
    """The usage error that an exception amounts to; None if it is of another kind.

    fairseq reads options of our tasks from those of the criterion, and the other way round, before
    either can check the other: if one is missing, omegaconf raises an error of its own.
    """
    if isinstance(error, UsageError):
        return error
    owner = getattr(getattr(error, "object_type", None), "__module__", "")
    if type(error).__name__ == "InterpolationKeyError" and owner.startswith("alum_fairseq."):
        _, layer, name = owner.split(".")
        given, missing = ("task", "criterion") if layer == "tasks" else ("criterion", "task")
        return UsageError(
            f"--task and --criterion do not fit each other ({error.full_key} is not there): with "
            f"--{given} {name} add --{missing} {name}"
        )
    return None


def show_usage_errors_in_one_line() -> None:
    """Print an uncaught :class:`UsageError` as its message alone, without a traceback.

    Other exceptions are printed as before.
    """
    previous = sys.excepthook
    if getattr(previous, "_shows_usage_errors", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        usage = explained(error)
        if usage is not None:
            print(f"alum_fairseq: error: {printable(usage)}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    hook._shows_usage_errors = True
    sys.excepthook = hook
