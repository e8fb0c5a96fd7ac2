"""Ready-made adversarial sets: further labelled data, in the layouts that their authors publish."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alum_fairseq.data.tables import TableFormat, read_rows
from alum_fairseq.data.texts import own_format
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import existing_file
from alum_fairseq.problems import SupervisedProblem, TokenProblem
from alum_fairseq.robustness.types import Example, Texts

_Row = tuple[Texts, str]  # and the label, as the set has it
_Meanings = Mapping[str, frozenset[str]]


def _meanings(**names: str) -> _Meanings:
    """What labels mean, under the names that data sets have for them.

    Args:
        names: for each meaning its names. A label may stand in several places, and so leave open
            which holds: "not_entailment" is neutral or a contradiction.
    """
    every = {name for known in names.values() for name in known.split()}
    return {
        name: frozenset(meaning for meaning, known in names.items() if name in known.split())
        for name in every
    }


_NO_ENTAILMENT = "not_entailment non-entailment non_entailment not-entailment"
_ENTAILMENT = _meanings(
    entailment="entailment entails entailed e",
    neutral=f"neutral n {_NO_ENTAILMENT}",
    contradiction=f"contradiction contradicts c {_NO_ENTAILMENT}",
)
_SENTIMENT = _meanings(negative="negative neg", positive="positive pos")
_DUPLICATES = _meanings(different="not_duplicate not_equivalent", same="duplicate equivalent")
_ALL_MEANINGS = {**_ENTAILMENT, **_SENTIMENT, **_DUPLICATES}

# From the layout to the format, the columns of the texts, and that of the label.
_TABLES = {
    # dev.jsonl or test.jsonl of a round of ANLI (Nie et al. 2020, arXiv 1910.14599)
    "anli": (TableFormat("jsonl"), ("context", "hypothesis"), "label"),
    # heuristics_evaluation_set.txt of HANS (McCoy et al. 2019, arXiv 1902.01007)
    "hans": (TableFormat("tsv"), ("sentence1", "sentence2"), "gold_label"),
}


@dataclass(frozen=True)
class _Task:
    """A task in dev.json of AdvGLUE (Wang et al. 2021, arXiv 2111.02840).

    The keys of its texts, and its classes in the order of their numbers, which are those of Hugging
    Face's ``glue`` and ``adv_glue``.
    """

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    meanings: _Meanings

    def row(self, where: str, found: Any) -> _Row:
        if not isinstance(found, dict):
            raise UsageError(f"{where}: an object is expected, not {json.dumps(found)[:40]}")
        texts = [found.get(key) for key in self.keys]
        for key, text in zip(self.keys, texts, strict=True):
            # Half a character is no text.
            if not isinstance(text, str) or text.encode(errors="ignore").decode() != text:
                raise UsageError(f"{where}: {key} must be a text, not {json.dumps(text)[:40]}")
        number = found.get("label")
        if type(number) is not int or number not in range(len(self.classes)):
            raise UsageError(
                f"{where}: the label is {number!r}: it must be from 0 to {len(self.classes) - 1}"
            )
        return tuple(text.strip() for text in texts), self.classes[number]


# The numbers under which GLUE's own tables have classes are among the meanings, but not those of
# entailment: 0 is entailment for some and contradiction for others.
_MNLI = _Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _ENTAILMENT)
_TWO_WAY = ("entailment", "not_entailment")
_ADVGLUE_TASKS: Mapping[str, _Task] = {
    "sst2": _Task(
        ("sentence",),
        ("negative", "positive"),
        {**_SENTIMENT, "0": _SENTIMENT["negative"], "1": _SENTIMENT["positive"]},
    ),
    "qqp": _Task(
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        {**_DUPLICATES, "0": _DUPLICATES["not_duplicate"], "1": _DUPLICATES["duplicate"]},
    ),
    "mnli": _MNLI,
    "mnli-mm": _MNLI,
    "qnli": _Task(("question", "sentence"), _TWO_WAY, _ENTAILMENT),
    "rte": _Task(("sentence1", "sentence2"), _TWO_WAY, _ENTAILMENT),
}


def read_set(
    spec: str,
    columns: Sequence[str] | None,
    label: str | None,
    table: TableFormat,
    problem: SupervisedProblem,
    map_labels: Mapping[str, str] | None = None,
) -> tuple[str, list[Example]]:
    """Read what ``--adversarial-set`` names.

    A label of the set is a label of the model if it has the same name, in capitals or not, or else
    if it is known to mean the same. Where it covers several labels of the model, each is accepted:
    HANS's "non-entailment" is "neutral" as well as "contradiction".

    Args:
        spec: ``FILE`` or ``NAME=FILE``, laid out as the main data; or with the layout of a
            published set ``anli:FILE``, ``hans:FILE`` or ``advglue:FILE#TASK``.
        columns: the columns of the texts in the main data; None if those are binarised.
        label: the column of the label, likewise.
        table: how the main data are divided.
        problem: what the model answers.
        map_labels: for labels of the set, which labels of the model are right, separated by commas
            (``{"non-entailment": "neutral,contradiction"}``); goes before any other rule.

    Returns:
        The name of the set, and its examples, whose answers are labels of the model.

    Raises:
        UsageError: the file cannot be read, has no examples, another number of texts than the main
            data, or a label of which it is not known what it is for the model.
    """
    name, layout, place = _parse(spec)
    if isinstance(problem, TokenProblem):
        return name, _of_tokens(spec, layout, Path(place), columns, label, table, problem)
    if layout and not problem.categorical:
        raise UsageError(f"{spec}: {layout} has classes, but the model predicts numbers")
    if layout == "advglue":
        rows, meanings = _read_advglue(spec, place)
    else:
        if not layout and not (columns and label is not None):
            raise UsageError(f"{spec}: name its columns with --columns and --label")
        meanings = _ENTAILMENT if layout else _ALL_MEANINGS
        layout_of = _TABLES[layout] if layout else (table, columns, label)
        rows = [(row.texts, row.label) for row in read_rows(Path(place), *layout_of)]
    _check_texts(spec, rows, columns)
    if problem.categorical:
        accepted = _accepted(spec, rows, problem.labels, meanings, map_labels or {})
    else:
        accepted = _numbers(spec, rows, problem)
    examples = []
    for number, (texts, answer) in enumerate(rows):
        right = accepted[answer]
        of_model = (right[0],) if len(right) == 1 else (answer, right)
        examples.append(Example(number, texts, *of_model))
    return name, examples


def _of_tokens(
    spec: str,
    layout: str,
    path: Path,
    columns: Sequence[str] | None,
    label: str | None,
    table: TableFormat,
    problem: TokenProblem,
) -> list[Example]:
    if layout:
        raise UsageError(f"{spec}: {layout} has classes, but the model has {problem.answers}")
    table = own_format(path, table, problem) or table
    columns, label = columns or problem.columns, label or problem.label_column
    examples = []
    for row in read_rows(path, table, columns, label):
        problem.check_answer(row.label, f"{path}:{row.line}")
        examples.append(Example(len(examples), row.texts, row.label, name=row.name))
    if not examples:
        raise UsageError(f"{spec}: there are no examples")
    return examples


def _parse(spec: str) -> tuple[str, str, str]:
    """The name, the layout (empty: that of the main data) and the rest of what was asked for."""
    name, equals, place = spec.partition("=")
    if not equals or "/" in name:  # an equals sign in a path
        name, place = "", spec
    layout, colon, rest = place.partition(":")
    if colon and layout in (*_TABLES, "advglue"):
        place = rest
    else:
        layout = ""
    if not place:
        raise UsageError(f"{spec!r} names no file")
    task = f"-{place.rpartition('#')[2]}" if layout == "advglue" else ""
    return name or f"{layout or Path(place).stem}{task}", layout, place


def _read_advglue(spec: str, place: str) -> tuple[list[_Row], _Meanings]:
    """Read one task of the JSON file that holds all."""
    path, _, name = place.rpartition("#")
    if not path or name not in _ADVGLUE_TASKS:
        raise UsageError(
            f"{spec}: it must be advglue:FILE#TASK, where TASK is one of "
            f"{', '.join(_ADVGLUE_TASKS)}"
        )
    task = _ADVGLUE_TASKS[name]
    file = existing_file(Path(path))
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # also of what is not in UTF-8
        raise UsageError(f"{path} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(found, dict) or not isinstance(found.get(name), list):
        raise UsageError(f"{path} is not AdvGLUE's dev.json: it holds no list under {name!r}")
    rows = [task.row(f"{path}: {name} {i}", each) for i, each in enumerate(found[name])]
    return rows, task.meanings


def _check_texts(spec: str, rows: list[_Row], columns: Sequence[str] | None) -> None:
    if not rows:
        raise UsageError(f"{spec}: there are no examples")
    texts = len(rows[0][0])
    if columns and texts != len(columns):
        ours, theirs = (f"{n} text{'' if n == 1 else 's'}" for n in (texts, len(columns)))
        raise UsageError(f"{spec}: an example has {ours}, one of the main data {theirs}")


def _numbers(spec: str, rows: list[_Row], problem: SupervisedProblem) -> dict[str, tuple[str, ...]]:
    for i, (_, answer) in enumerate(rows):
        try:
            problem.answer(answer)
        except UsageError:
            raise UsageError(
                f"{spec}: the label of example {i} is {answer!r}: it is no number"
            ) from None
    return {answer: (answer,) for _, answer in rows}


def _accepted(
    spec: str,
    rows: list[_Row],
    labels: Sequence[str],
    meanings: _Meanings,
    map_labels: Mapping[str, str],
) -> dict[str, tuple[str, ...]]:
    """For every label of the set the labels of the model that are right."""
    accepted: dict[str, tuple[str, ...]] = dict.fromkeys(answer for _, answer in rows)
    for answer in accepted:
        if answer in map_labels:
            accepted[answer] = _mapped(answer, map_labels[answer], labels)
        else:
            accepted[answer] = _by_name(answer, labels) or _by_meaning(answer, labels, meanings)
        if not accepted[answer]:
            raise UsageError(
                f"{spec}: it is not known what {answer!r} is for the model: the set has "
                f"{', '.join(accepted)}, the model has {', '.join(labels)}; say which is which "
                f"with --map-labels {answer}=LABEL or {answer}=LABEL,LABEL"
            )
    return accepted


def _mapped(answer: str, wanted: str, labels: Sequence[str]) -> tuple[str, ...]:
    named = (wanted,) if wanted in labels else tuple(part.strip() for part in wanted.split(","))
    for label in named:
        if label not in labels:
            raise UsageError(
                f"--map-labels {answer}={wanted}: the model has no label {label!r}, it has "
                f"{', '.join(labels)}"
            )
    return named


def _by_name(answer: str, labels: Sequence[str]) -> tuple[str, ...]:
    if answer in labels:
        return (answer,)
    same = [label for label in labels if label.casefold() == answer.casefold()]
    return tuple(same) if len(same) == 1 else ()


def _by_meaning(answer: str, labels: Sequence[str], meanings: _Meanings) -> tuple[str, ...]:
    """The labels that say no less or no more than the answer does."""
    meant = meanings.get(answer.casefold(), frozenset())
    known = {label: meanings.get(label.casefold(), frozenset()) for label in labels}
    return tuple(
        label
        for label, other in known.items()
        if other and meant and (other <= meant or meant <= other)
    )
