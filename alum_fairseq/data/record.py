"""What is known of prepared data: ``alum-prepare.json``, which says what the numbers mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alum_fairseq.errors import UsageError
from alum_fairseq.files import whole_file

RECORD = "alum-prepare.json"
VOCABULARY = "vocabulary"  # where the vocabulary lies in the folder
VERSION = 1
KINDS = ("classification", "regression", "choices")


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
    """

    files: list[str]
    rows: int
    truncated: int
    dropped: int
    unknown: int
    labelled: bool
    label_counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataRecord:
    """All that a program needs to know of a prepared folder.

    Attributes:
        kind: ``classification``, ``regression`` or ``choices`` (which candidate fits the context?).
        inputs: the number of texts: ``input0``, ``input1``, ...; of choices the first is the
            context, the others are the candidates.
        labels: the labels as they stood in the table, in the order of the classes; None for
            regression.
        columns: the columns of the texts in the training table.
        label_column: that of the label.
        format: the training table's kind, see :class:`alum_fairseq.data.tables.TableFormat`.
        header: whether it has a header.
        max_positions: the most tokens of an example, special ones included.
        bpe: fairseq's name of the rule that cuts the text into symbols.
        scale: what the labels of a regression were divided by.
        task: the name of a known data set, or None.
        splits: by name: ``train``, ``valid``, ``valid1``, ..., ``test``, ``test1``, ...
        version: of this file's format.
    """

    kind: str
    inputs: int
    labels: list[str] | None
    columns: list[str]
    label_column: str
    format: str
    header: bool
    max_positions: int
    bpe: str
    scale: float = 1.0
    task: str | None = None
    splits: dict[str, SplitRecord] = field(default_factory=dict)
    version: int = VERSION

    @property
    def num_classes(self) -> int:
        """What fairseq calls ``--num-classes``: classes, candidates, or 1 number."""
        return 1 if self.labels is None else len(self.labels)

    def train_options(self) -> list[str]:
        """The options of ``fairseq-train`` that follow from the data."""
        options = ["--num-classes", str(self.num_classes)]
        if self.kind == "regression":
            options.append("--regression-target")
        options += ["--init-token", "0"]
        if self.inputs > 1:
            options += ["--separator-token", "2"]
        return [*options, "--max-positions", str(self.max_positions)]

    @classmethod
    def load(cls, folder: Path) -> DataRecord:
        """Read the record of a folder.

        Raises:
            UsageError: there is none, or it is broken, or of another version.
        """
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
            record = cls(**found, splits=splits)
        except (TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{path} is no record of alum-prepare: {error}") from None
        wrong = record.wrong_entry()
        if wrong is not None:
            raise UsageError(
                f"{path} is no record of alum-prepare: {wrong} is {getattr(record, wrong)!r:.100}"
            )
        return record

    def wrong_entry(self) -> str | None:
        """The name of an entry that cannot be; None if all can."""
        right = {
            "kind": self.kind in KINDS,
            "inputs": type(self.inputs) is int and 0 < self.inputs < 1000,
            "labels": self.labels is None
            if self.kind == "regression"
            else _are_texts(self.labels) and len(set(self.labels)) == len(self.labels) > 1,
            "columns": _are_texts(self.columns),
            "label_column": isinstance(self.label_column, str),
            "header": isinstance(self.header, bool),
            "max_positions": type(self.max_positions) is int and self.max_positions > 0,
            "scale": type(self.scale) in (int, float) and 0 < self.scale < float("inf"),
        }
        return next((name for name, fine in right.items() if not fine), None)

    def save(self, folder: Path) -> None:
        """Write the record into a folder."""
        with whole_file(folder / RECORD) as path:
            text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
            path.write_text(text + "\n", encoding="utf-8")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
