"""From a plan to the folder that fairseq reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary

from alum_fairseq import cli
from alum_fairseq.data.encoding import ExampleEncoder, encode_all
from alum_fairseq.data.layout import Layout
from alum_fairseq.data.pieces import PieceEncoder
from alum_fairseq.data.record import VOCABULARY, DataRecord, SplitRecord
from alum_fairseq.data.tables import Row, read_rows
from alum_fairseq.data.texts import write_texts
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, shown, whole_folder
from alum_fairseq.prepare.labels import in_order, label_dictionary, matched
from alum_fairseq.prepare.plan import TEST, TRAIN, Plan, Source
from alum_fairseq.problems import UNLABELLED, SupervisedProblem, TokenProblem

# A process is worth its start for so many lines of symbols.
_LINES_A_WORKER = 20_000
# The quantile of the inputs' lengths that the size of batches goes by.
_LONG = 0.999
# So many different labels are classes even if few of them recur.
_DISTINCT = 10


@dataclass(frozen=True)
class Split:
    """A split as it was read.

    Attributes:
        rows: its examples, each with its ``file:line``; all of them have labels, or none.
        dropped: the number of rows that were left out.
    """

    rows: list[tuple[str, Row]]
    dropped: int

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels."""
        return self.rows[0][1].label is not None


def prepare(
    plan: Plan, vocabulary: Vocabulary, output: Path, max_positions: int, workers: int
) -> DataRecord:
    """Make the folder that fairseq's task reads, whole or not at all.

    Raises:
        UsageError: the folder exists, or something is wrong with the tables.
    """
    with whole_folder(output) as folder:
        # Or it raises, before all else.
        if isinstance(plan.problem, TokenProblem):
            PieceEncoder(vocabulary, Layout(plan.problem, max_positions))
        else:
            ExampleEncoder(vocabulary, max_positions, plan.problem)
        splits = {name: read_split(name, source) for name, source in plan.sources.items()}
        if plan.also:
            splits = _together(plan, splits)
        problem = settled(plan, splits)
        for split in splits.values():
            for place, row in split.rows if split.labelled else ():
                problem.check_answer(str(row.label), place)
        vocabulary.copy_to(folder / VOCABULARY)
        of_tokens = isinstance(problem, TokenProblem)
        if not of_tokens:
            _write_labels(folder / "label", problem, splits)
        source = plan.sources[TRAIN]
        record = DataRecord(
            problem=problem,
            inputs=len(source.columns),
            columns=list(source.columns),
            label_column=str(source.label),
            format=source.table.format_of(source.files[0]),
            header=source.has_header,
            max_positions=max_positions,
            bpe=vocabulary.bpe,
            task=plan.task,
        )
        write = _write_pieces if of_tokens else _write_texts
        for name, split in splits.items():
            truncated, unknown, lengths = write(folder, name, split, record, vocabulary, workers)
            record.splits[name] = SplitRecord(
                [
                    shown(file)
                    for source in (plan.sources[name], *(plan.also if name == TRAIN else ()))
                    for file in source.files
                ],
                len(split.rows),
                truncated,
                split.dropped,
                unknown,
                split.labelled,
                _counts(split, problem) if split.labelled else {},
                int(np.quantile(lengths, _LONG, method="higher")),
            )
        record.save(folder)
    return record


def read_split(name: str, source: Source) -> Split:
    """Read the tables of a split; a UsageError if a row is malformed, or there is none."""
    malformed: list[int] = []
    is_test = name.startswith(TEST)
    skip = malformed.append if source.skip_malformed else None
    rows = [each for file in source.files for each in _rows_of(file, source, is_test, skip)]
    files, no_label = _listed(source.files), source.table.no_label
    if not rows:
        raise UsageError(f"{files}: there are no rows")
    labels = {row.label for _, row in rows}
    if is_test and labels <= {None, no_label}:
        unlabelled = [(place, replace(row, label=None)) for place, row in rows]
        return Split(unlabelled, len(malformed))
    agreed = [each for each in rows if each[1].label is None or each[1].label != no_label]
    for place, row in agreed:
        if row.label is None:
            raise UsageError(
                f"{place}: the label is empty, but others are not: if that means that there is "
                "none, give --no-label ''"
            )
    if not agreed:
        raise UsageError(f"{files}: no row has a label other than {no_label!r}")
    return Split(agreed, len(malformed) + len(rows) - len(agreed))


def _together(plan: Plan, splits: dict[str, Split]) -> dict[str, Split]:
    """The splits with the further training sets, and one name for each class.

    Raises:
        UsageError: a table has a label that the first one has not.
    """
    of_classes = plan.problem.has_classes and not isinstance(plan.problem, TokenProblem)
    train = splits[TRAIN]
    classes = plan.problem.labels or in_order({str(row.label) for _, row in train.rows})
    first = shown(plan.sources[TRAIN].files[0])

    def renamed(split: Split) -> Split:
        if not (of_classes and split.labelled):
            return split
        places: dict[str, str] = {}
        for place, row in split.rows:
            places.setdefault(str(row.label), place)
        called = matched(places, classes, first)
        rows = [(place, replace(row, label=called[str(row.label)])) for place, row in split.rows]
        return replace(split, rows=rows)

    also = [renamed(read_split(TRAIN, source)) for source in plan.also]
    splits = {name: renamed(split) for name, split in splits.items()}
    rows = [*splits[TRAIN].rows, *chain.from_iterable(split.rows for split in also)]
    dropped = sum((split.dropped for split in also), train.dropped)
    return splits | {TRAIN: Split(rows, dropped)}


def _rows_of(
    file: Path, source: Source, is_test: bool, skip: Callable[[int], None] | None
) -> Iterator[tuple[str, Row]]:
    """The rows of a table, with their labels from a file beside it if they stand there."""
    beside = file.with_name(source.label_file.format(file.stem)) if source.label_file else None
    read = partial(read_rows, file, source.table, source.columns, skip=skip)
    if beside is None or (is_test and not beside.is_file()):
        rows = read(source.label, label_optional=is_test)
    else:
        rows = list(read(None))
        labels = existing_file(beside).read_text(encoding="utf-8").split()
        if len(labels) != len(rows):
            raise UsageError(f"{beside} has {len(labels):,} labels, but {file} {len(rows):,} rows")
        rows = map(lambda row, label: replace(row, label=label), rows, labels)
    for row in rows:
        name = row.label and source.names.get(row.label, row.label)
        yield f"{shown(file)}:{row.line}", replace(row, label=name)


def _listed(files: Sequence[Path]) -> str:
    return " and ".join([*map(shown, files[:3]), *(["others"] if len(files) > 3 else [])])


def settled(plan: Plan, splits: dict[str, Split]) -> SupervisedProblem:
    """The problem with its classes in their order; a UsageError if these cannot be meant."""
    if isinstance(plan.problem, TokenProblem):
        return plan.problem.settled([str(row.label) for _, row in splits[TRAIN].rows])
    if not plan.problem.categorical:
        return plan.problem
    train, source = splits[TRAIN].rows, plan.sources[TRAIN]
    file = source.files[0]
    counts = Counter(row.label for _, row in train)
    if not plan.problem.labels and source.table.header is None and len(counts) > 1:
        # Suspect a first row whose label is the only one that does not recur.
        place, first = train[0]
        alone = [label for label, count in counts.items() if count == 1] == [first.label]
        if alone and source.table.format_of(file) != "jsonl" and not source.has_header:
            raise UsageError(
                f"{place}: no other row has the label {first.label!r}: give --header if this line "
                "holds the columns' names, else --no-header"
            )
    labels = plan.problem.labels or tuple(in_order(counts))
    problem = replace(plan.problem, labels=labels)
    problem.check_columns(len(source.columns), f"{shown(file)}, column {source.label}")
    if not plan.problem.labels and len(labels) > max(_DISTINCT, len(train) / 2):
        raise UsageError(
            f"{shown(file)}, column {source.label}: {len(labels):,} different labels in "
            f"{len(train):,} rows are hardly classes: give --label, the column of the classes, "
            "--regression if labels are numbers, or --labels, all of the classes"
        )
    if len(labels) < 2:
        raise UsageError(
            f"every row of {shown(file)} has the label {labels[0]} (column {source.label}): there "
            "is nothing to learn; give --regression if labels are numbers"
        )
    for label in set(UNLABELLED) & set(labels) - set(plan.problem.labels):
        if label == "-" or "0" in labels:  # but -1 and 1 are two classes
            cli.say(
                f"{counts[label]:,} rows of {shown(file)} have the label {label}, which is a class "
                f"here: give --no-label {label} if it means that there is none"
            )
    for label in set(labels) - set(counts):
        cli.say(f"no row of {shown(file)} has the label {label}")
    return problem


def _write_labels(folder: Path, problem: SupervisedProblem, splits: dict[str, Split]) -> None:
    """Write ``label/``: lines of text, or symbols and their dictionary."""
    folder.mkdir()
    dictionary = None
    if problem.binarized_labels:
        counts = _counts(splits[TRAIN], problem)
        dictionary = label_dictionary(problem.labels, list(counts.values()))
        dictionary.save(str(folder / DICTIONARY))
    for name, split in splits.items():
        if not split.labelled:
            continue
        lines = [problem.label_line(str(row.label)) for _, row in split.rows]
        if dictionary is not None:
            lines = [dictionary[dictionary.nspecial + int(line)] for line in lines]
        file = folder / f"{name}.label"
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if dictionary is not None:
            _binarize(file, folder / name, dictionary, 1)
            file.unlink()


def _write_texts(
    folder: Path,
    name: str,
    split: Split,
    record: DataRecord,
    vocabulary: Vocabulary,
    workers: int,
) -> tuple[int, int, list[int]]:
    """Write ``input0/``, ``input1/``, ... of a split.

    Returns:
        The number of truncated examples, that of unknown symbols, and the tokens of each example.
    """
    folders = [folder / f"input{i}" for i in range(record.inputs)]
    for each in folders:
        each.mkdir(exist_ok=True)
        (each / DICTIONARY).write_bytes((vocabulary.folder / DICTIONARY).read_bytes())
    files = [each / f"{name}.txt" for each in folders]
    examples = encode_all(
        [row.texts for _, row in split.rows],
        vocabulary,
        record.max_positions,
        record.problem,
        workers,
    )
    truncated = unknown = 0
    lengths = []
    with ExitStack() as stack:
        streams = [stack.enter_context(file.open("w", encoding="utf-8")) for file in files]
        for example in cli.progress(examples, f"encoding {name}", len(split.rows)):
            truncated += example.truncated
            unknown += example.unknown
            lengths.append(example.tokens)
            for stream, text in zip(streams, example.texts, strict=True):
                stream.write(text + "\n")
    for each, file in zip(folders, files, strict=True):
        _binarize(file, each / name, vocabulary.dictionary, workers)
        file.unlink()
    return truncated, unknown, lengths


def _write_pieces(
    folder: Path, name: str, split: Split, record: DataRecord, vocabulary: Vocabulary, _: int
) -> tuple[int, int, list[int]]:
    """Write ``text/``, which the tasks about tokens read; what they will make of it is counted.

    Returns:
        The number of examples that several inputs are made of, that of unknown symbols, and the
        tokens of each input.
    """
    encoder = PieceEncoder(vocabulary, Layout(record.problem, record.max_positions))
    several = unknown = 0
    lengths = []
    for _, row in cli.progress(split.rows, f"encoding {name}", len(split.rows)):
        pieces = encoder(row.texts)
        several += len(pieces) > 1
        unknown += sum(map(encoder.unknown_in, pieces))
        lengths += [len(piece.tokens) for piece in pieces]
    write_texts(folder, name, [row for _, row in split.rows])
    return several, unknown, lengths


def _binarize(text: Path, prefix: Path, dictionary: Dictionary, workers: int) -> None:
    """What ``fairseq-preprocess --srcdict`` does with a file, by the same code, without its log."""
    with text.open("rb") as stream:
        lines = sum(1 for _ in stream)
    FileBinarizer.multiprocess_dataset(
        str(text),
        "mmap",
        VocabularyDatasetBinarizer(dictionary),
        str(prefix),
        vocab_size=len(dictionary),
        num_workers=min(workers, 1 + lines // _LINES_A_WORKER),
    )


def _counts(split: Split, problem: SupervisedProblem) -> dict[str, int]:
    answers = (problem.classes_in(str(row.label)) for _, row in split.rows)
    counts = Counter(chain.from_iterable(answers))
    return {label: counts[label] for label in problem.labels}
