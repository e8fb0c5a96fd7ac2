"""What is to be prepared: where every split comes from, and what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alum_fairseq.data.tables import TableFormat, has_header
from alum_fairseq.problems import SupervisedProblem

TRAIN, VALID, TEST = "train", "valid", "test"


@dataclass(frozen=True)
class Source:
    """Where a split comes from.

    Attributes:
        files: its tables, one after the other.
        table: how they are divided; rows with its ``no_label`` are dropped.
        columns: the columns of the texts.
        label: the column of the label; None where there is none.
        label_file: of labels that stand in a file beside the table, one for every row: its name,
            where ``{}`` is the table's without its suffix.
        skip_malformed: whether rows with too few or too many fields are dropped.
        names: of labels that the file has: what to call them.
    """

    files: tuple[Path, ...]
    table: TableFormat
    columns: tuple[str, ...]
    label: str | None
    label_file: str | None = None
    skip_malformed: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_header(self) -> bool:
        """Whether the tables begin with the names of their columns."""
        if self.table.format_of(self.files[0]) in ("jsonl", "squad", "conll"):
            return False
        return has_header(self.table, [*self.columns, str(self.label)])


@dataclass(frozen=True)
class Plan:
    """What is to be prepared.

    Attributes:
        problem: what is to be predicted; without labels its classes are those of the training set.
        sources: by split, ``train`` among them.
        task: the name of a known data set, or of several with ``+`` between; or None.
        also: further training sets.
    """

    problem: SupervisedProblem
    sources: Mapping[str, Source]
    task: str | None = None
    also: tuple[Source, ...] = ()
