"""``alum-prepare``: tables of texts and labels become data that fairseq fine-tunes on."""

from __future__ import annotations

import argparse
import os
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from alum_fairseq import cli
from alum_fairseq.checkpoints.architecture import architecture_options
from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.checkpoints.fit import encoder_sizes
from alum_fairseq.data.record import DataRecord
from alum_fairseq.data.tables import add_table_options, table_format
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.prepare.build import prepare
from alum_fairseq.prepare.datasets import KNOWN_TASKS, in_folder, known_task, together
from alum_fairseq.prepare.plan import TEST, TRAIN, VALID, Plan, Source
from alum_fairseq.prepare.train_script import SCRIPT, train_script
from alum_fairseq.problems import (
    Classification,
    MultipleChoice,
    Regression,
    SequenceTagging,
    SpanPrediction,
    SupervisedProblem,
)

_DESCRIPTION = """\
Makes the data that fairseq's sentence_prediction (and sentence_ranking) fine-tunes on.

  alum-prepare --train train.tsv --valid dev.tsv --test test.tsv --columns sentence --label label \\
      --vocabulary DIR --output DATA
  alum-prepare --task SST-2 --input glue/SST-2 --vocabulary DIR --output DATA
"""
_KNOWN = textwrap.fill(f"Known data sets (--task): {', '.join(KNOWN_TASKS)}.", 98)
_EPILOG = f"""\
{_KNOWN}
What was done is recorded in DATA/alum-prepare.json. DATA/train.sh is the whole fairseq-train
command for these data and the model.
"""

MODEL = "model.pt"  # as alum-convert and fairseq's released archives have it beside dict.txt
_POSITIONS = 512
_TOKEN_PROBLEMS = {kind.form: kind for kind in (SpanPrediction, SequenceTagging)}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.workers < 1:
        raise UsageError(f"--workers is {arguments.workers}: it must be 1 or more")
    plan = _known_plan(arguments) if arguments.task else _own_plan(arguments)
    vocabulary = Vocabulary.load(arguments.vocabulary)
    model, positions = _model(arguments, vocabulary), arguments.max_positions
    if model is not None:
        most = architecture_options(model.options, model.weights, model.path)["max_positions"]
        if positions is not None and positions > most:
            raise UsageError(f"--max-positions is {positions}: {model.path} has {most} positions")
        positions = positions or most
    record = prepare(plan, vocabulary, arguments.output, positions or _POSITIONS, arguments.workers)
    print(summary(record))
    print(f"\nwrote {arguments.output}")
    if VALID not in record.splits:
        cli.say("no validation set (--valid): training cannot tell its best checkpoint")
    if model is None:
        _print_options(record, arguments)
    else:
        _write_script(record, arguments.output, model)


def _model(arguments: argparse.Namespace, vocabulary: Vocabulary) -> Checkpoint | None:
    """The checkpoint to start from, if there is one; a UsageError if it has other symbols."""
    path = arguments.model or arguments.vocabulary / MODEL
    if arguments.model is None and not path.is_file():
        return None
    model = Checkpoint(path)
    symbols = encoder_sizes(model.weights, path)["symbols"]
    found = len(vocabulary.dictionary) + ("<mask>" not in vocabulary.dictionary)
    if found != symbols:
        raise UsageError(
            f"{path} has a vocabulary of {symbols:,} symbols, {vocabulary.folder / DICTIONARY} "
            f"makes {found:,}: give --vocabulary, the folder of the model's own {DICTIONARY}"
        )
    return model


def _print_options(record: DataRecord, arguments: argparse.Namespace) -> None:
    print("\nthe options of fairseq-train that belong to it:\n")
    options = [*record.train_options(), "--required-batch-size-multiple", "1"]
    print("  " + shlex.join([str(arguments.output), *options]))
    cli.say(
        f"no {SCRIPT} was written, the whole command: {arguments.vocabulary} has no {MODEL}; give "
        "--model, the checkpoint to start from"
    )


def _write_script(record: DataRecord, data: Path, model: Checkpoint) -> None:
    script, command = train_script(record, data, model)
    path = data.absolute() / SCRIPT
    path.write_text(script, encoding="utf-8")
    run = shlex.join(["bash", str(path)])
    print(
        f"\n{run}         fine-tunes {model.path} with ALUM\n{run} plain   without\n\n"
        f"What it runs with ALUM:\n\n{command}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("alum-prepare", _DESCRIPTION, _EPILOG)
    _add_own_tables(parser.add_argument_group("your own tables"))
    add_table_options(parser)
    known = parser.add_argument_group("a known data set")
    known.add_argument(
        "--task",
        nargs="+",
        metavar="NAME",
        help="one of those listed below; of several with the same classes the training sets are "
        "put together, and the first one's validation set chooses the best checkpoint",
    )
    known.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="for each, the folder with the files as they were published",
    )
    _add_questions(parser.add_argument_group("questions on contexts"))
    out = parser.add_argument_group("what is made")
    out.add_argument(
        "--vocabulary",
        type=Path,
        required=True,
        metavar="DIR",
        help="the model's dict.txt, and the files of its BPE",
    )
    out.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help=f"the checkpoint that {SCRIPT} fine-tunes (default: {MODEL} of --vocabulary)",
    )
    out.add_argument("--output", type=Path, required=True, metavar="DATA", help="a new folder")
    out.add_argument(
        "--max-positions",
        type=int,
        metavar="N",
        help="most tokens of an example, special ones included: of longer ones the longest text "
        f"loses its end (default: the model's positions, else {_POSITIONS})",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out.add_argument(
        "--workers",
        type=int,
        default=cores or 1,
        metavar="N",
        help="processes (default: all cores)",
    )
    return parser


def _add_questions(group: Any) -> None:
    usual = SpanPrediction()
    for name, what in (
        ("max_question", "most tokens of a question, which loses its end"),
        ("doc_stride", "tokens that two neighbouring inputs of a long context share"),
        ("max_answer", "most tokens of an answer that the model may give"),
    ):
        option, value = f"--{name.replace('_', '-')}", getattr(usual, name)
        group.add_argument(option, type=int, metavar="N", help=f"{what} (default: {value})")


def _add_own_tables(own: Any) -> None:
    own.add_argument(
        "--train",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="training set; -: standard input; several with the same columns are put together",
    )
    for name, what in ((VALID, "validation sets"), (TEST, "test sets; labels may be missing")):
        own.add_argument(
            f"--{name}",
            type=Path,
            nargs="+",
            default=[],
            metavar="FILE",
            help=f"{what}: fairseq's {name}, {name}1, ...",
        )
    own.add_argument(
        "--labels",
        type=str.strip,
        nargs="+",
        metavar="LABEL",
        help="the classes in their order (default: the training set's, sorted)",
    )
    own.add_argument("--regression", action="store_true", help="labels are numbers")
    own.add_argument(
        "--scale",
        type=float,
        metavar="NUMBER",
        help="divide the labels of a regression by it (default: 1)",
    )
    own.add_argument(
        "--choices",
        nargs="+",
        metavar="COLUMN",
        help="multiple choice: columns of the candidates; the text of --columns is their context, "
        "the label says which of them is right",
    )


def _known_plan(arguments: argparse.Namespace) -> Plan:
    known = [known_task(name) for name in arguments.task]
    named = f"--task {' '.join(str(plan.task) for plan in known)}"
    parser = _parser()
    for option in (
        *("train", "valid", "test", "labels", "regression", "scale", "choices"),
        *("columns", "label", "format", "header"),
    ):
        if getattr(arguments, option) != parser.get_default(option):
            raise UsageError(f"{named} knows the layout: leave out --{option}")
    if arguments.input is None:
        raise UsageError(f"{named} needs --input, the folder of its files")
    if len(arguments.input) != len(known):
        raise UsageError(f"{named} needs as many folders: --input has {len(arguments.input)}")
    plans = []
    for plan, folder in zip(known, arguments.input, strict=True):
        found, missing = in_folder(plan, folder)
        plans.append(found)
        for split in missing:
            files = " and ".join(map(str, plan.sources[split].files))
            cli.say(f"no {split}: {folder} has no {files}")
    plan = together(plans)
    plan = replace(plan, problem=_with_settings(plan.problem, arguments))
    if arguments.no_label is None:
        return plan

    def without(source: Source) -> Source:
        return replace(source, table=replace(source.table, no_label=arguments.no_label))

    sources = {split: without(source) for split, source in plan.sources.items()}
    return replace(plan, sources=sources, also=tuple(map(without, plan.also)))


def _own_plan(arguments: argparse.Namespace) -> Plan:
    table = table_format(arguments)
    form = arguments.train and table.form_of(arguments.train[0])
    of_tokens = _TOKEN_PROBLEMS.get(form)
    if of_tokens is not None:
        arguments.columns = arguments.columns or list(of_tokens.columns)
        arguments.label = arguments.label or of_tokens.label_column
    for option in ("train", "columns", "label"):
        if getattr(arguments, option) is None:
            raise UsageError(f"give --{option}, or --task and --input for a known data set")
    if arguments.input is not None:
        raise UsageError("--input goes with --task: name your own tables by --train, ...")
    columns = tuple(arguments.columns)
    for other in arguments.train[1:]:
        if _TOKEN_PROBLEMS.get(table.form_of(other)) is not of_tokens:
            raise UsageError(f"--train {arguments.train[0]} {other}: these are not of one kind")
    files: dict[str, Path] = {TRAIN: arguments.train[0]}
    for kind in (VALID, TEST):  # fairseq's names: test, test1, test2, ...
        files |= {f"{kind}{i or ''}": path for i, path in enumerate(getattr(arguments, kind))}
    problem = of_tokens() if of_tokens else _problem(arguments, columns)
    problem = _with_settings(problem, arguments)
    if of_tokens:
        _refuse_for_tokens(arguments, form)
    columns += tuple(arguments.choices or ())

    def source(file: Path) -> Source:
        return Source((file,), table, columns, arguments.label)

    sources = {split: source(file) for split, file in files.items()}
    return Plan(problem, sources, also=tuple(map(source, arguments.train[1:])))


def _with_settings(problem: SupervisedProblem, arguments: argparse.Namespace) -> SupervisedProblem:
    """The problem with the options that are for questions."""
    names = ("max_question", "doc_stride", "max_answer")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if given and not isinstance(problem, SpanPrediction):
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option} is for questions on contexts (--format squad)")
    return replace(problem, **given)


def _refuse_for_tokens(arguments: argparse.Namespace, form: str) -> None:
    for option in ("labels", "regression", "scale", "choices", "header"):
        if getattr(arguments, option) not in (None, False):
            raise UsageError(f"--{option} does not go with --format {form}: leave it out")


def _problem(arguments: argparse.Namespace, columns: tuple[str, ...]) -> SupervisedProblem:
    """What is to be predicted, by the options; those that do not go together are refused."""
    if arguments.regression and (arguments.choices or arguments.labels):
        other = "--choices" if arguments.choices else "--labels"
        raise UsageError(f"--regression and {other} exclude each other")
    if arguments.scale is not None:
        if not arguments.regression:
            raise UsageError("--scale goes with --regression")
        if not 0 < arguments.scale < float("inf"):
            raise UsageError(f"--scale is {arguments.scale}: it must be above 0")
    if arguments.labels and len(set(arguments.labels)) != len(arguments.labels):
        raise UsageError(f"--labels {' '.join(arguments.labels)}: one of them comes twice")
    if arguments.labels and len(arguments.labels) < 2:
        raise UsageError(f"--labels {arguments.labels[0]}: name all classes, two or more")
    labels = tuple(arguments.labels or ())
    if arguments.choices:
        if len(columns) != 1 or len(arguments.choices) < 2:
            raise UsageError("--choices needs two or more columns, and --columns one, the context")
        return MultipleChoice(labels)
    if len(columns) > 2:
        raise UsageError(f"--columns names {len(columns)} columns: fairseq reads one text, or two")
    if arguments.regression:
        return Regression(scale=1.0 if arguments.scale is None else arguments.scale)
    return Classification(labels)


def summary(record: DataRecord) -> str:
    """A table of what was prepared, in plain text."""
    rows = [("split", "rows", "truncated", "left out", "unknown tokens", "labels")]
    for name, split in record.splits.items():
        each = ((" ".join(label.split()), count) for label, count in split.label_counts.items())
        counts = ", ".join(f"{label}: {count}" for label, count in each)
        if len(split.label_counts) > 10:
            counts = f"{len(split.label_counts)} classes"
        numbers = (split.rows, split.truncated, split.dropped, split.unknown)
        answers = counts or record.problem.answers
        rows.append((name, *map(str, numbers), answers if split.labelled else "none"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
