"""What a column may name: a place in a JSON object, and several columns in one text."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from typing import Any

from alum_fairseq.errors import UsageError, one_line

# A list of which every entry is an example: what stands before the first `.*` of a name.
_LIST = re.compile(r"(^|\+)([^+*]+)\.\*")
_BLANK = re.compile(r"\b_+\b")


def object_in(where: str, line: str) -> dict[str, Any]:
    """The JSON object of a line; a UsageError, which begins with the place, if it is none."""
    hint = "; write an object per line, not a list" if line.lstrip().startswith("[") else ""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: this is not JSON: {one_line(error)}{hint}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{where}: a JSON object is expected, not {json.dumps(found):.40}{hint}")
    return found


def parts(column: str, names: Container[str] = ()) -> list[str]:
    """The names that ``+`` joins; a column of that very name is itself."""
    return [column] if column in names else column.split("+")


def joined(texts: Sequence[str]) -> str:
    """One text, with blanks between; if the first has a blank to fill in (``_``), it is filled."""
    if len(texts) == 1:
        return texts[0]
    first, *rest = [text.strip() for text in texts]
    if _BLANK.search(first):
        return _BLANK.sub(lambda _: " ".join(rest), first)
    return " ".join(text for text in (first, *rest) if text)


def value_at(found: Any, path: str) -> Any:
    """What is at a path of keys and numbers (from 0), such as ``question.choices.0.text``.

    A key of that very name comes first; None: nothing is there.
    """
    if isinstance(found, dict) and path in found:
        return found[path]
    for step in path.split("."):
        number = step.lstrip("#")
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and number.isdecimal() and int(number) < len(found):
            found = found[int(number)]
        else:
            return None
    return found


def examples_in(where: str, found: dict[str, Any], columns: Sequence[str]) -> Iterator[list[str]]:
    """The columns of each example of an object: as given, but ``#0``, ``#1``, ... for ``*``.

    Raises:
        UsageError: the lists of which every entry is an example are not equally long.
    """
    paths = [match[2] for name in columns if name not in found for match in _LIST.finditer(name)]
    lists = {path: value for path in paths if isinstance(value := value_at(found, path), list)}
    if not paths or not lists:
        yield list(columns)
        return
    if len(set(map(len, lists.values()))) > 1:
        lengths = ", ".join(f"{path} has {len(value)}" for path, value in lists.items())
        raise UsageError(f"{where}: there must be as many of each: {lengths}")
    for i in range(len(next(iter(lists.values())))):
        yield from examples_in(where, found, [_LIST.sub(rf"\1\2.#{i}", name) for name in columns])


def check_lists(where: str, found: dict[str, Any], columns: Sequence[str]) -> None:
    """Raise a UsageError where columns name entries of a list, but not all of them."""
    named = defaultdict(set)
    for part in (part for column in columns for part in parts(column, found)):
        steps = part.split(".")
        for i in range(1, len(steps)):
            if steps[i].isdecimal():
                named[".".join(steps[:i])].add(steps[i])
    for path, wanted in named.items():
        value = value_at(found, path)
        if isinstance(value, list) and len(value) != len(wanted):
            raise UsageError(
                f"{where}: {path} has {len(value)} entries, where {len(wanted)} should be: "
                f"{json.dumps(value):.60}"
            )
