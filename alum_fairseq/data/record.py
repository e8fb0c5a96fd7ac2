"""What is known of prepared data: ``alum-prepare.json``, which says what the numbers mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alum_fairseq.data.vocabulary import DICTIONARY, class_names, load_dictionary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import whole_file
from alum_fairseq.problems import PROBLEMS, SupervisedProblem, TokenProblem

RECORD = "alum-prepare.json"
VOCABULARY = "vocabulary"  # where the vocabulary lies in the folder
CLASSES = "classes"  # the key of their names in a checkpoint's task_state
VERSION = 1

# What a record of earlier versions has for the name of a problem, under "kind".
_EARLIER = {"choices": "multiple_choice"}


@dataclass(frozen=True)
class SplitRecord:
    """One split.

    Attributes:
        files: what it was made of.
        rows: its examples.
        truncated: examples that were longer than ``max_positions``.
        dropped: rows that were left out.
        unknown: symbols that the dictionary does not hold.
        labelled: whether it has labels.
        label_counts: the examples of every class, in the order of the classes; empty for
            regression, and without labels.
        length: the tokens that 999 of 1,000 inputs do not exceed, special ones included.
    """

    files: list[str]
    rows: int
    truncated: int
    dropped: int
    unknown: int
    labelled: bool
    label_counts: dict[str, int] = field(default_factory=dict)
    length: int = 0


@dataclass(frozen=True)
class DataRecord:
    """All that a program needs to know of a prepared folder.

    Attributes:
        problem: what is to be predicted, with the labels as they stood in the table.
        inputs: the number of texts: ``input0``, ``input1``, ...; of a multiple choice the first is
            the context, the others are the candidates.
        columns: the columns of the texts in the training table.
        label_column: that of the label.
        format: the training table's kind, see :class:`alum_fairseq.data.tables.TableFormat`.
        header: whether it has a header.
        max_positions: the most tokens of an example, special ones included.
        bpe: fairseq's name of the subword encoder.
        task: the name of a known data set, or None.
        splits: by name: ``train``, ``valid``, ``valid1``, ..., ``test``, ``test1``, ...
        version: of this file's format.
    """

    problem: SupervisedProblem
    inputs: int
    columns: list[str]
    label_column: str
    format: str
    header: bool
    max_positions: int
    bpe: str
    task: str | None = None
    splits: dict[str, SplitRecord] = field(default_factory=dict)
    version: int = VERSION

    def train_options(
        self, max_positions: int | None = None, separator: int | None = 2
    ) -> list[str]:
        """The options of ``fairseq-train`` that follow from the data.

        Args:
            max_positions: the model's (default: those of the data).
            separator: the symbol between two texts; None: none, as in BERT.
        """
        options = [*self.problem.train_options(), "--init-token", "0"]
        if self.inputs > 1 and separator is not None:
            options += ["--separator-token", str(separator)]
        return [*options, "--max-positions", str(max_positions or self.max_positions)]

    @classmethod
    def load(cls, folder: Path) -> DataRecord:
        """Read a folder's record; a UsageError if it is missing, broken or of another version."""
        path = folder / RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}): name a folder that alum-prepare made"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is no record of alum-prepare: {error}") from None
        version = found.get("version") if isinstance(found, dict) else None
        if version != VERSION:
            raise UsageError(
                f"{path} has version {version}: this alum_fairseq reads version {VERSION}; "
                "prepare the data anew"
            )
        try:
            splits = {name: SplitRecord(**split) for name, split in found.pop("splits").items()}
            record = cls(_problem(found), **found, splits=splits)
            _require(
                vars(record),
                inputs=type(record.inputs) is int and 0 < record.inputs < 1000,
                columns=_are_texts(record.columns),
                label_column=isinstance(record.label_column, str),
                header=isinstance(record.header, bool),
                max_positions=type(record.max_positions) is int and record.max_positions > 0,
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UsageError(f"{path} is no record of alum-prepare: {error}") from None
        return record

    def save(self, folder: Path) -> None:
        """Write the record into a folder."""
        problem = self.problem
        entries = {
            **asdict(self),
            "problem": problem.name,
            "labels": list(problem.labels) or None,
            "scale": problem.scale,
        }
        if isinstance(problem, TokenProblem):
            entries["settings"] = problem.settings
        with whole_file(folder / RECORD) as path:
            text = json.dumps(entries, ensure_ascii=False, indent=2)
            path.write_text(text + "\n", encoding="utf-8")


def _problem(entries: dict[str, Any]) -> SupervisedProblem:
    """The problem of a record as read; what describes it is taken out of the entries."""
    name = str(entries.pop("problem", None) or entries.pop("kind", None))
    labels, scale = entries.pop("labels", None), entries.pop("scale", 1.0)
    settings = entries.pop("settings", {})
    kind: Any = PROBLEMS.get(_EARLIER.get(name, name), object)
    _require({"problem": name}, problem=issubclass(kind, SupervisedProblem))
    classes = _are_texts(labels) and len(set(labels)) == len(labels) > 1
    _require(
        {"labels": labels, "scale": scale},
        labels=classes if kind.has_classes else labels is None,
        scale=type(scale) in (int, float) and 0 < scale < float("inf"),
    )
    problem = kind(tuple(labels or ()), scale)
    if isinstance(problem, TokenProblem):
        _require(
            {"settings": settings},
            settings=isinstance(settings, dict)
            and {name: type(value) for name, value in settings.items()}
            == {name: type(value) for name, value in problem.settings.items()},
        )
        return replace(problem, **settings)
    return problem


def _require(entries: dict[str, Any], **right: bool) -> None:
    wrong = next((name for name, fine in right.items() if not fine), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is {entries[wrong]!r:.100}")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def vocabulary_of(data: Path) -> Path:
    """The folder of the vocabulary of prepared data, or of a converted model, which has its own."""
    return data / VOCABULARY if (data / VOCABULARY).is_dir() else data


def classes_of(data: Path) -> tuple[str, ...] | None:
    """The names of the classes of prepared data, by their numbers; None if nothing says them.

    Raises:
        UsageError: the record or the dictionary of the labels is broken.
    """
    if (data / RECORD).is_file() and (labels := DataRecord.load(data).problem.labels):
        return labels
    if (data / "label" / DICTIONARY).is_file():
        return tuple(class_names(load_dictionary(data / "label")))
    return None
