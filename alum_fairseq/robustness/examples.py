"""The examples that models are measured on: from a table, or from binarised data."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.data.data_utils import load_indexed_dataset

from alum_fairseq import cli
from alum_fairseq.data.binarized import read_label_lines, read_split
from alum_fairseq.data.tables import TableFormat, read_rows, table_format
from alum_fairseq.data.texts import own_format, read_texts
from alum_fairseq.data.vocabulary import Vocabulary, load_dictionary
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.predict import Predictor
from alum_fairseq.problems import SpanPrediction, SupervisedProblem, TokenProblem
from alum_fairseq.robustness.store import text_digest
from alum_fairseq.robustness.types import Example


@dataclass(frozen=True)
class Data:
    """What the models are measured on.

    Attributes:
        predictor: the first model; all answer the same questions.
        source: where the examples come from, for readers.
        columns: the columns of the texts in a table; None: the data were prepared.
        label: the column of the label, likewise.
        attacked: those of the examples that attacks look at.
    """

    predictor: Predictor
    problem: SupervisedProblem
    source: str
    columns: list[str] | None
    label: str | None
    examples: list[Example]
    attacked: list[Example]

    @classmethod
    def read(cls, options: argparse.Namespace, predictor: Predictor) -> Data:
        """Read the examples that the options name, and draw those that are measured.

        Raises:
            UsageError: they cannot be read, or an option does not go with them.
        """
        columns, label = options.columns, options.label
        if options.input is None:
            if columns or label:
                raise UsageError("--columns and --label are those of --input, which is not given")
            folder = predictor.checkpoint.data
            source = f"{folder}: {options.subset}"
            examples = from_prepared(folder, options.subset, predictor)
        else:
            columns, label = _columns(options, predictor)
            source = str(options.input)
            table = own_format(options.input, table_format(options), predictor.problem)
            table = table or table_format(options)
            examples = from_table(options.input, table, columns, label, predictor, options.no_label)
        answers = [example.answer for example in examples]
        problem = predictor.problem.within(options.tolerance, answers)
        chosen = sample(examples, options.examples, options.seed)
        attacked = sample(chosen, options.attack_examples, options.seed)
        return cls(predictor, problem, source, columns, label, chosen, attacked)

    @property
    def tolerance(self) -> float | None:
        """How far from the answer a right number may be; None for classes."""
        return None if self.problem.categorical else self.problem.tolerance

    @property
    def null_threshold(self) -> float | None:
        """That for no answer; None where every example has one."""
        problem = self.problem
        of_questions = isinstance(problem, SpanPrediction) and problem.unanswerable
        return problem.null_threshold if of_questions else None

    def described(self) -> dict[str, Any]:
        """What a report says of them; the digest is of all, and of which are attacked."""
        attacked = [example.number for example in self.attacked]
        return {
            "source": self.source,
            "examples": len(self.examples),
            "attacked": len(attacked),
            "sha256": text_digest([*map(asdict, self.examples), attacked]),
            "kind": "choices" if self.problem.name == "multiple_choice" else self.problem.name,
            "labels": list(self.problem.labels) or None,
            "tolerance": self.tolerance,
        }


def _columns(options: argparse.Namespace, predictor: Predictor) -> tuple[list[str], str]:
    """The columns of the texts and of the label: those given, else those of the training data."""
    columns, label = options.columns, options.label
    if columns and label:
        return columns, label
    if isinstance(predictor.problem, TokenProblem):
        problem = predictor.problem
        return columns or list(problem.columns), label or problem.label_column
    record = predictor.checkpoint.record
    if record is None:
        raise UsageError(f"give --columns and --label, the columns of {options.input}")
    return columns or record.columns, label or record.label_column


def from_table(
    path: Path,
    table: TableFormat,
    columns: Sequence[str],
    label: str,
    predictor: Predictor,
    no_label: str | None = None,
) -> list[Example]:
    """Read a labelled table, without the rows whose label is ``no_label``.

    Raises:
        UsageError: a row is malformed, or its label is not one of the model's.
    """
    predictor.check_inputs(len(columns))
    examples, unlabelled = [], 0
    for row in read_rows(path, table, columns, label):
        if row.label == no_label:
            unlabelled += 1
            continue
        predictor.problem.check_answer(row.label, f"{path}:{row.line}")
        examples.append(Example(len(examples), row.texts, row.label, name=row.name))
    if unlabelled:
        cli.say(f"{unlabelled:,} rows of {path} have no label: they are left out")
    if not examples:
        raise UsageError(f"{path} has no examples")
    return examples


def from_prepared(data: Path, subset: str, predictor: Predictor) -> list[Example]:
    """Read a split of a folder that ``alum-prepare`` made; a UsageError if it has no labels."""
    if not isinstance(predictor.problem, TokenProblem):
        return from_binarized(data, subset, predictor)
    rows = read_texts(data, subset, predictor.problem)
    if any(row.label is None for row in rows):
        raise UsageError(f"{data}: the examples of {subset} have no labels")
    return [Example(i, row.texts, row.label, name=row.name) for i, row in enumerate(rows)]


def from_binarized(data: Path, subset: str, predictor: Predictor) -> list[Example]:
    """Read a split of a folder that ``alum-prepare`` or ``fairseq-preprocess`` made, as text again.

    Subwords are put together; what tokenisation lost (such as capitals, in an uncased vocabulary)
    stays lost, which changes nothing for the model.

    Raises:
        UsageError: the split is not there, has no labels, or cannot be read.
    """
    folders = [folder for i in range(100) if (folder := data / f"input{i}").is_dir()]
    if not folders:
        raise UsageError(f"{data} has no input0: it is no folder of a prepared data set")
    predictor.check_inputs(len(folders))
    bpe = Vocabulary.load(predictor.checkpoint.vocabulary.folder).encoder()
    words = predictor.checkpoint.dictionary
    columns = [
        [
            bpe.decode(" ".join(words[i] for i in tokens if i != words.eos()))
            for tokens in _sequences(folder / subset, words)
        ]
        for folder in folders
    ]
    names, of_data = predictor.problem.labels, predictor.checkpoint.data_labels
    if set(of_data or ()) == set(names):  # the model may have them in another order
        names = of_data
    answers = list(_answers(data / "label", subset, predictor.problem, names))
    if len({len(answers), *map(len, columns)}) > 1:
        raise UsageError(f"{data}: its inputs and labels of {subset} are not equally many")
    if not answers:
        raise UsageError(f"{data}: there are no examples of {subset}")
    rows = zip(zip(*columns, strict=True), answers, strict=True)
    return [Example(i, texts, answer) for i, (texts, answer) in enumerate(rows)]


def _answers(
    folder: Path, subset: str, problem: SupervisedProblem, names: Sequence[str]
) -> Iterator[str]:
    """The labels as they stood in the table; ``names`` are the classes in the data's order."""
    if not problem.binarized_labels:
        for place, line in read_label_lines(folder / f"{subset}.label"):
            try:
                yield problem.from_label_line(line)
            except ValueError:
                raise UsageError(f"{place}: {line!r} is no label") from None
        return
    if not (folder / f"{subset}.idx").is_file():
        raise UsageError(f"{folder} has no labels of {subset}")
    symbols = load_dictionary(folder)
    for place, tokens in enumerate(_sequences(folder / subset, symbols), 1):
        number = tokens[0] - symbols.nspecial if tokens else None
        if number not in range(len(names)):
            found = symbols[tokens[0]] if tokens else None
            raise UsageError(
                f"{folder / subset}: the label of example {place} is {found!r}, which the model "
                "does not have"
            )
        yield names[number]


def _sequences(prefix: Path, dictionary: Dictionary) -> list[list[int]]:
    split = read_split(prefix)
    if split is not None:
        split.check_tokens(0, len(dictionary), "the symbols of its dictionary")
    try:
        found: Any = load_indexed_dataset(str(prefix), dictionary)
        return [found[i].tolist() for i in range(len(found))]
    except Exception as error:  # fairseq's own, of many kinds
        raise UsageError(f"{prefix} cannot be read: {one_line(error)}") from None


def sample(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most so many of the examples (0: all), drawn at random, in their order.

    A smaller sample is part of a larger one.
    """
    if not most or most >= len(examples):
        return list(examples)
    shuffled = list(range(len(examples)))
    random.Random(seed).shuffle(shuffled)
    return [examples[i] for i in sorted(shuffled[:most])]
