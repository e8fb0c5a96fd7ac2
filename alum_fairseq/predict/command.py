"""``alum-predict``: a fine-tuned checkpoint reads text, and writes labels and probabilities."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from alum_fairseq import cli
from alum_fairseq.data.tables import (
    Row,
    TableFormat,
    add_table_options,
    read_rows,
    table_format,
)
from alum_fairseq.data.texts import own_format
from alum_fairseq.errors import UsageError
from alum_fairseq.files import STDIN, new_file, shown, whole_file
from alum_fairseq.predict.options import (
    add_compute_options,
    add_model_options,
    load_predictor,
    on_gpu,
)
from alum_fairseq.predict.predictor import Predictor
from alum_fairseq.problems import TokenProblem

_DESCRIPTION = """\
Predicts labels and probabilities with a fine-tuned checkpoint.

  echo 'A gripping film.' | alum-predict --path finetuned/checkpoint_best.pt
  alum-predict --path finetuned/checkpoint_best.pt --input test.tsv --columns sentence \\
      --label label --output predictions.tsv
"""
_EPILOG = """\
Without --columns, an example is a line of standard input or of a .txt file, with a tab between its
texts; another file has its texts in the columns by whose names alum-prepare made the training data.
With --label, the predictions are scored, on standard error.
"""

OUTPUTS = ("tsv", "jsonl")
_CHUNK = 4096  # examples that are sorted by length among themselves


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    arguments.output_format = _output_format(arguments)
    if arguments.output is not None:
        new_file(arguments.output)
    if arguments.fp16 and not on_gpu(arguments):
        raise UsageError("--fp16 needs a GPU")
    predictor = load_predictor(arguments.path, arguments)
    if arguments.fp16:
        predictor.model.half()
    rows = _rows(arguments, predictor)
    with _output(arguments.output) as file:
        predicted = _write(rows, predictor, file, arguments)
    if not predicted:
        cli.say(f"{shown(arguments.input)} holds no example: nothing was predicted")
    if predictor.truncated:
        cli.say(
            f"{predictor.truncated:,} of {predicted:,} examples were too long for the model, and "
            "were read without their ends"
        )


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("alum-predict", _DESCRIPTION, _EPILOG)
    model = parser.add_argument_group("the model")
    model.add_argument("--path", type=Path, required=True, metavar="FILE", help="the checkpoint")
    add_model_options(model)
    parser.add_argument_group("the text").add_argument(
        "--input",
        type=Path,
        default=STDIN,
        metavar="FILE",
        help="TSV, CSV, JSON-lines or lines of text (default: standard input)",
    )
    add_table_options(parser)
    out = parser.add_argument_group("what is written")
    out.add_argument(
        "--output", type=Path, metavar="FILE", help="a new file (default: standard output)"
    )
    out.add_argument(
        "--output-format",
        choices=OUTPUTS,
        help="default: what the suffix of --output says, else tsv",
    )
    out.add_argument(
        "--n-best",
        type=int,
        metavar="N",
        help="of a question: the N best spans (JSON; default: 5)",
    )
    out.add_argument("--keep-input", action="store_true", help="write the texts as well")
    how = parser.add_argument_group("how it is computed")
    add_compute_options(how)
    how.add_argument("--fp16", action="store_true", help="in half precision, on a GPU")
    return parser


def _output_format(arguments: argparse.Namespace) -> str:
    """The format of the output: that given, else by the file's suffix."""
    path = arguments.output or Path()
    found = arguments.output_format or TableFormat().form_of(path) or "tsv"
    if found not in OUTPUTS:
        raise UsageError(
            f"--output {path}: what is written is TSV or JSON-lines: end the name with .tsv or "
            ".jsonl, or give --output-format"
        )
    return found


def _rows(arguments: argparse.Namespace, predictor: Predictor) -> Iterator[Row]:
    """The examples, each checked against the model."""
    path, table, problem = arguments.input, table_format(arguments), predictor.problem
    label, optional = arguments.label, False
    of_tokens = isinstance(problem, TokenProblem)  # whose .txt may hold a word a line
    is_text = path.suffix.lower() == ".txt" and table.format is None and not of_tokens
    by_lines = is_text or (path == STDIN and table.format != "jsonl")
    if by_lines and table.format is None:
        table = replace(table, format="tsv")
    own = own_format(path, table, problem)
    if isinstance(problem, TokenProblem) and own is not None:
        table, optional = own, True
        columns = arguments.columns or problem.columns
        label = label or problem.label_column
    else:
        columns = arguments.columns or _usual_columns(arguments, predictor, by_lines)
    predictor.check_inputs(len(columns))
    whole = by_lines and arguments.columns is None
    for row in read_rows(path, table, columns, label, label_optional=optional, whole=whole):
        if row.label == arguments.no_label:
            row = replace(row, label=None)
        if row.label is not None:
            problem.check_answer(row.label, f"{shown(path)}:{row.line}")
        yield row


def _usual_columns(
    arguments: argparse.Namespace, predictor: Predictor, by_lines: bool
) -> Sequence[str]:
    """Of lines all; of another file those of the training data, if they have names."""
    record = predictor.checkpoint.record
    if not by_lines:
        # Numbers say neither where the texts of another table are, nor whether it has a header.
        if record is None or any(map(str.isdecimal, record.columns)):
            raise UsageError(
                f"give --columns, the columns of {shown(arguments.input)} with the texts"
            )
        return record.columns
    if arguments.label is not None:
        raise UsageError("--label needs --columns, the columns with the texts")
    return [str(i + 1) for i in range(1 if record is None else record.inputs)]


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    with whole_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        yield file


def _tsv_line(fields: Iterable[str]) -> str:
    """The fields, each with a blank for tabs and line breaks, such as the name of a class has."""
    return "\t".join(re.sub("[\t\r\n]+", " ", field) for field in fields) + "\n"


def _write(
    rows: Iterator[Row], predictor: Predictor, file: IO[str], arguments: argparse.Namespace
) -> int:
    """Predict and write, a chunk at a time; returns how many."""
    problem = predictor.problem
    answered: list[tuple[Any, str]] = []
    count = 0
    with cli.counter("predicting", "examples") as counter:
        while chunk := list(islice(rows, _CHUNK)):
            predictions = predictor.predict([row.texts for row in chunk], arguments.max_tokens)
            for row, prediction in zip(chunk, predictions, strict=True):
                texts = row.texts if arguments.keep_input else ()
                name = {} if row.name is None else {"id": row.name}
                if arguments.output_format == "jsonl":
                    entries = name | ({"texts": list(texts)} if texts else {})
                    entries |= problem.entries(prediction)
                    file.write(json.dumps(entries, ensure_ascii=False) + "\n")
                else:
                    fields = {f"text{i}": " ".join(text.split()) for i, text in enumerate(texts, 1)}
                    fields = name | fields | problem.row(prediction)
                    if not count:
                        file.write(_tsv_line(fields))
                    file.write(_tsv_line(fields.values()))
                count += 1
                if row.label is not None:
                    answered.append((prediction, row.label))
            counter.update(len(chunk))
    if answered:
        found = problem.scores(*zip(*answered, strict=True))
        shown_scores = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        cli.say(f"{len(answered):,} examples: {shown_scores}")
    return count
