"""The one exception for bad input, shared by every layer."""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import TracebackType

_MOST = 1500  # characters of a message; what is right comes first, or long before


class UsageError(ValueError, RuntimeError):
    """A setting or an input is wrong; the message names it, its value and what would be right.

    A ``ValueError`` for whoever calls the Python API. A ``RuntimeError`` as well because
    fairseq's trainer writes a ``crash.pt`` into the save directory for every other exception.
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
    """Make sure that a field's value is right.

    Raises:
        FieldError: the condition does not hold.
    """
    if not condition:
        raise FieldError(name, f"is {value!r}: it must be {right}")


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Make sure that a field's value is one of its choices.

    Raises:
        FieldError: it is not.
    """
    require(name, value, f"one of {', '.join(choices)}", value in choices)


def is_number(value: object) -> bool:
    """Whether something is a number; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def one_line(error: BaseException) -> str:
    """The message of a library's error without its line breaks, cut to what can be read."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


def printable(error: BaseException) -> str:
    """The message in one line; what steers a terminal is shown rather than sent to it.

    Names and values in a stranger's file may hold anything, and any number of it.
    """
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(error))
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."


def explained(error: BaseException) -> UsageError | None:
    """What an error that ends a program says of its usage; None if it is of another kind.

    fairseq reads the options of our tasks from those of the criterion, and the other way round,
    before either can look whether they fit: omegaconf says what is not there.
    """
    if isinstance(error, UsageError):
        return error
    owner = getattr(getattr(error, "object_type", None), "__module__", "")
    if type(error).__name__ == "InterpolationKeyError" and owner.startswith("alum_fairseq."):
        return UsageError(
            f"--task and --criterion do not fit each other: {error.full_key} is not there; choose "
            "two of one name, such as alum_sentence_prediction"
        )
    return None


def show_usage_errors_in_one_line() -> None:
    """End a program by a :class:`UsageError` with its message alone, without a traceback.

    Every other exception is shown as before.
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
