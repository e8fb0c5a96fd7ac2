"""Ready-made adversarial sets: further labelled data, in the layouts that their authors publish."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alum_fairseq.data.tables import TableFormat, read_rows
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import existing_file
from alum_fairseq.robustness.types import Example, Texts

_Row = tuple[Texts, str]  # and the label, as the set has it
_Meanings = Mapping[str, frozenset[str]]

# What labels mean, under the names that data sets have for them. A label may leave open which of
# several meanings holds: "not_entailment" is neutral or a contradiction.
_ENTAILMENT: _Meanings = {
    **dict.fromkeys(("entailment", "entails", "entailed", "e"), frozenset({"entailment"})),
    **dict.fromkeys(("neutral", "n"), frozenset({"neutral"})),
    **dict.fromkeys(("contradiction", "contradicts", "c"), frozenset({"contradiction"})),
    **dict.fromkeys(
        ("not_entailment", "non-entailment", "non_entailment", "not-entailment"),
        frozenset({"neutral", "contradiction"}),
    ),
}
_SENTIMENT: _Meanings = {
    **dict.fromkeys(("negative", "neg"), frozenset({"negative"})),
    **dict.fromkeys(("positive", "pos"), frozenset({"positive"})),
}
_DUPLICATES: _Meanings = {
    **dict.fromkeys(("not_duplicate", "not_equivalent"), frozenset({"different"})),
    **dict.fromkeys(("duplicate", "equivalent"), frozenset({"same"})),
}
_ALL_MEANINGS = {**_ENTAILMENT, **_SENTIMENT, **_DUPLICATES}

# The numbers under which GLUE's own tables have classes. Those of entailment are not among them:
# 0 is entailment for some and contradiction for others.
_NUMBERED_SENTIMENT = {**_SENTIMENT, "0": _SENTIMENT["negative"], "1": _SENTIMENT["positive"]}
_NUMBERED_DUPLICATES = {
    **_DUPLICATES,
    "0": _DUPLICATES["not_duplicate"],
    "1": _DUPLICATES["duplicate"],
}


@dataclass(frozen=True)
class AdversarialSet:
    """A set to measure a model on.

    Attributes:
        name: what it is called.
        examples: what is in it; their answers are labels of the model.
    """

    name: str
    examples: list[Example]


@dataclass(frozen=True)
class _Table:
    table: TableFormat
    columns: Sequence[str]
    label: str

    def rows(self, path: Path) -> Iterator[_Row]:
        for row in read_rows(path, self.table, self.columns, self.label):
            yield row.texts, row.label


_PUBLISHED_TABLES: Mapping[str, _Table] = {
    "anli": _Table(TableFormat("jsonl"), ("context", "hypothesis"), "label"),
    "hans": _Table(TableFormat("tsv"), ("sentence1", "sentence2"), "gold_label"),
}
_LAYOUTS = (*_PUBLISHED_TABLES, "advglue")


@dataclass(frozen=True)
class _Task:
    """A task of AdvGLUE: the keys of its texts, and its classes in the order of their numbers."""

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    meanings: _Meanings

    def row(self, where: str, found: Any) -> _Row:
        if not isinstance(found, dict):
            raise UsageError(f"{where}: an object is expected, not {json.dumps(found)[:40]}")
        texts = [found.get(key) for key in self.keys]
        for key, text in zip(self.keys, texts, strict=True):
            if not _is_text(text):
                raise UsageError(f"{where}: {key} must be a text, not {json.dumps(text)[:40]}")
        number = found.get("label")
        if type(number) is not int or number not in range(len(self.classes)):
            raise UsageError(
                f"{where}: the label is {number!r}: it must be from 0 to {len(self.classes) - 1}"
            )
        return tuple(text.strip() for text in texts), self.classes[number]


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or not value)
    except UnicodeEncodeError:  # half a character
        return False


_THREE_WAY = ("entailment", "neutral", "contradiction")
_TWO_WAY = ("entailment", "not_entailment")
_ADVGLUE_TASKS: Mapping[str, _Task] = {
    "sst2": _Task(("sentence",), ("negative", "positive"), _NUMBERED_SENTIMENT),
    "qqp": _Task(("question1", "question2"), ("not_duplicate", "duplicate"), _NUMBERED_DUPLICATES),
    "mnli": _Task(("premise", "hypothesis"), _THREE_WAY, _ENTAILMENT),
    "mnli-mm": _Task(("premise", "hypothesis"), _THREE_WAY, _ENTAILMENT),
    "qnli": _Task(("question", "sentence"), _TWO_WAY, _ENTAILMENT),
    "rte": _Task(("sentence1", "sentence2"), _TWO_WAY, _ENTAILMENT),
}


def read_set(
    spec: str,
    columns: Sequence[str] | None,
    label: str | None,
    table: TableFormat,
    labels: Sequence[str] | None,
    map_labels: Mapping[str, str] | None = None,
) -> AdversarialSet:
    """Read what ``--adversarial-set`` names.

    A label of the set is a label of the model if it has the same name, in capitals or not, or else
    if it is known to mean the same. Where it covers several labels of the model, each is accepted:
    HANS's "non-entailment" is "neutral" as well as "contradiction".

    Args:
        spec: ``FILE`` or ``NAME=FILE``, where the file is laid out as the main data are; or, with
            the layouts of published sets,

            - ``anli:FILE``: ``dev.jsonl`` or ``test.jsonl`` of a round of ANLI (Nie et al. 2020,
              arXiv 1910.14599; anli_v1.0.zip, README);
            - ``hans:FILE``: ``heuristics_evaluation_set.txt`` (McCoy et al. 2019, arXiv
              1902.01007; its repository's README);
            - ``advglue:FILE#TASK``: ``dev.json`` of AdvGLUE (Wang et al. 2021, arXiv 2111.02840;
              its numbers of the classes are those of Hugging Face's ``glue`` and ``adv_glue``),
              where TASK is one of sst2, qqp, mnli, mnli-mm, qnli, rte.
        columns: the columns of the texts in the main data; None if those are binarised.
        label: the column of the label, likewise.
        table: how the main data are divided.
        labels: the labels of the model; None for regression.
        map_labels: for labels of the set, which labels of the model are right, separated by commas
            (``{"non-entailment": "neutral,contradiction"}``); goes before any other rule.

    Raises:
        UsageError: the file cannot be read, has no examples, another number of texts than the main
            data, or a label of which it is not known what it is for the model.
    """
    name, layout, place = _parse(spec)
    if layout and labels is None:
        raise UsageError(f"{spec}: {layout} has classes, but the model predicts numbers")
    if layout == "advglue":
        rows, meanings = _read_advglue(spec, place)
    elif layout:
        rows, meanings = list(_PUBLISHED_TABLES[layout].rows(Path(place))), _ENTAILMENT
    elif columns and label is not None:
        rows, meanings = list(_Table(table, columns, label).rows(Path(place))), _ALL_MEANINGS
    else:
        raise UsageError(f"{spec}: name its columns with --columns and --label")
    _require_rows(spec, rows, columns)
    if labels is None:
        _require_numbers(spec, rows)
        accepted = {}
    else:
        accepted = _accepted(spec, rows, labels, meanings, map_labels or {})
    return AdversarialSet(
        name, [_example(i, *row, accepted.get(row[1], ())) for i, row in enumerate(rows)]
    )


def _parse(spec: str) -> tuple[str, str, str]:
    """The name, the layout (empty: that of the main data) and the rest of what was asked for."""
    name, equals, place = spec.partition("=")
    if not equals or "/" in name:  # an equals sign in a path
        name, place = "", spec
    layout, colon, rest = place.partition(":")
    if colon and layout in _LAYOUTS:
        place = rest
    else:
        layout = ""
    if not place:
        raise UsageError(f"{spec!r} names no file")
    if layout == "advglue":
        default = f"{layout}-{place.rpartition('#')[2]}"
    else:
        default = layout or Path(place).stem
    return name or default, layout, place


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


def _require_rows(spec: str, rows: list[_Row], columns: Sequence[str] | None) -> None:
    if not rows:
        raise UsageError(f"{spec}: there are no examples")
    texts = len(rows[0][0])
    if columns and texts != len(columns):
        raise UsageError(
            f"{spec}: an example has {_count(texts)}, one of the main data {_count(len(columns))}"
        )


def _count(texts: int) -> str:
    return f"{texts} text{'' if texts == 1 else 's'}"


def _require_numbers(spec: str, rows: list[_Row]) -> None:
    for i, (_, answer) in enumerate(rows):
        try:
            finite = math.isfinite(float(answer))
        except ValueError:
            finite = False
        if not finite:
            raise UsageError(f"{spec}: the label of example {i} is {answer!r}: it is no number")


def _accepted(
    spec: str,
    rows: list[_Row],
    labels: Sequence[str],
    meanings: _Meanings,
    map_labels: Mapping[str, str],
) -> dict[str, tuple[str, ...]]:
    """For every label of the set the labels of the model that are right."""
    answers = dict.fromkeys(answer for _, answer in rows)
    accepted = {}
    for answer in answers:
        if answer in map_labels:
            accepted[answer] = _mapped(answer, map_labels[answer], labels)
        else:
            accepted[answer] = _by_name(answer, labels) or _by_meaning(answer, labels, meanings)
        if not accepted[answer]:
            raise UsageError(
                f"{spec}: it is not known what {answer!r} is for the model: the set has "
                f"{', '.join(answers)}, the model has {', '.join(labels)}; say which is which "
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
    meant = meanings.get(answer.casefold())
    if meant is None:
        return ()
    known = {label: meanings.get(label.casefold(), frozenset()) for label in labels}
    return tuple(
        label for label, other in known.items() if other and (other <= meant or meant <= other)
    )


def _example(number: int, texts: Texts, answer: str, accepted: tuple[str, ...]) -> Example:
    if len(accepted) == 1:
        return Example(number, texts, accepted[0])
    return Example(number, texts, answer, accepted)
