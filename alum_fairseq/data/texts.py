"""The splits of problems about tokens, as text: JSON lines in ``text/SPLIT.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from alum_fairseq.data.tables import Row, TableFormat
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, existing_folder, shown
from alum_fairseq.problems import PROBLEMS, SupervisedProblem, TokenProblem

TEXTS = "text"


def own_format(path: Path, table: TableFormat, problem: SupervisedProblem) -> TableFormat | None:
    """The format of files of a problem's data, if this is one; None: it is another table.

    Raises:
        UsageError: the file is one of another problem's data.
    """
    form, own = table.form_of(path), getattr(problem, "form", None)
    if own is not None and form in (own, "jsonl"):
        return TableFormat(own)
    if form in {getattr(each, "form", None) for each in PROBLEMS.values()} - {None}:
        raise UsageError(
            f"{shown(path)}: its format is {form}, but the model answers with {problem.answers}: "
            "give another file, or --format, such as jsonl"
        )
    return None


def write_texts(data: Path, split: str, rows: Sequence[Row]) -> None:
    """Write a split into a folder of data."""
    folder = data / TEXTS
    folder.mkdir(exist_ok=True)
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            entries = {"texts": row.texts, "label": row.label, "name": row.name}
            file.write(json.dumps(entries, ensure_ascii=False) + "\n")


def read_texts(data: Path, split: str, problem: TokenProblem) -> list[Row]:
    """The rows of a split, each with the line that it stands in.

    Raises:
        UsageError: there is no such split, or it is broken.
    """
    folder = existing_folder(data / TEXTS)
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(each.stem for each in folder.glob("*.jsonl"))) or "none"
        raise UsageError(f"{folder} has no subset {split}: it has {there}")
    rows = []
    try:
        lines = existing_file(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: the text is not in UTF-8: {error}") from None
    if lines[-1]:
        raise UsageError(f"{path} is cut short: make the data again")
    for number, line in enumerate(lines[:-1], 1):
        try:
            found = json.loads(line)
            row = Row(number, tuple(found["texts"]), found["label"], found["name"])
            fine = all(isinstance(text, str) for text in row.texts)
            fine = fine and isinstance(row.label, str | None) and isinstance(row.name, str | None)
        except (ValueError, TypeError, KeyError, RecursionError):
            fine = False
        if not fine:
            raise UsageError(f"{path}:{number}: this is no example: make the data again")
        problem.check_texts(len(row.texts))
        if row.label is not None:
            problem.check_answer(row.label, f"{path}:{number}")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} has no examples")
    return rows
