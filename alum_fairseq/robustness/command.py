"""``alum-robustness``: how robust are fine-tuned checkpoints, and is one more so than another?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alum_fairseq import cli
from alum_fairseq.data.tables import add_table_options
from alum_fairseq.errors import UsageError, require_count
from alum_fairseq.files import existing_file, existing_folder, new_file, new_folder
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.options import (
    add_compute_options,
    add_model_options,
    load_predictor,
)
from alum_fairseq.robustness.attacks.synonyms import write_synonyms
from alum_fairseq.robustness.examples import Data
from alum_fairseq.robustness.parts.options import resolve
from alum_fairseq.robustness.plan import add_options, plan
from alum_fairseq.robustness.report.compare import about, in_columns, joined, leaderboard
from alum_fairseq.robustness.report.publish import write_leaderboard, write_report
from alum_fairseq.robustness.report.summary import build_report
from alum_fairseq.robustness.report.wording import in_lines, paragraph, table, warnings_in_lines
from alum_fairseq.robustness.runner import WORK, run_parts, versions
from alum_fairseq.robustness.store import digest
from alum_fairseq.robustness.types import Example

_DESCRIPTION = """\
Measures how robust fine-tuned checkpoints are, and writes a report.

  alum-robustness --path finetuned/checkpoint_best.pt
  alum-robustness --path plain=plain1/checkpoint_best.pt plain=plain2/checkpoint_best.pt \\
      alum=alum1/checkpoint_best.pt alum=alum2/checkpoint_best.pt \\
      --input test.tsv --columns sentence --label label --output report
"""
_EPILOG = """\
Checkpoints that are given one NAME are seeds of one model; the first model is what others are
compared with.
`alum-robustness compare A B ...` prints one table of reports that exist; `alum-robustness synonyms`
makes a file of synonyms of word vectors, for textfooler and textbugger.
Without --input, the subset of the binarised data is read. A run that was stopped goes on when the
same command is given again; so does one with more checkpoints or parts.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    if argv[:1] == ["synonyms"]:
        _synonyms(argv[1:])
    elif argv[:1] == ["compare"]:
        _compare(argv[1:])
    else:
        _measure(argv)


def _measure(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    resolve(options)
    output = options.output.absolute()
    existing_folder(next(path for path in (output, *output.parents) if path.exists()))
    models = _models(options.path)
    paths = [path for each in models.values() for path in each]
    _check_output(output, paths)
    predictor, training = _comparable(paths, options)
    of_checkpoints = {
        path: {"path": str(path), "sha256": digest(path), "training": took}
        for path, took in zip(paths, training, strict=True)
    }
    data = Data.read(options, predictor)
    parts, notes = plan(options, data)
    for note in notes:
        cli.say(note)
    _say_what_is_cut(predictor, data.examples)
    begun = time.monotonic()

    def load(path: Path) -> Predictor:
        return predictor if path == paths[0] else load_predictor(path, options)

    records, seconds = run_parts(parts, data, paths, load, options)
    report = build_report(
        data=data.described(),
        models=[
            {"name": name, "checkpoints": [of_checkpoints[path] for path in each]}
            for name, each in models.items()
        ],
        parts=parts,
        records=records,
        settings={
            **_settings(options),
            "parts": [part.name for part in parts],
            "tolerance": data.tolerance,
            "null_threshold": data.null_threshold,
        },
        versions=versions(),
        seconds={str(path): took for path, took in zip(paths, seconds, strict=True)},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        notes=notes,
        seed=options.seed,
        resamples=options.resamples,
    )
    write_report(report, options.output)
    shown = in_columns(leaderboard(report)) if len(models) > 2 else table(report)
    print(shown, *warnings_in_lines(report), in_lines(report), sep="\n\n")
    took = int(time.monotonic() - begun)
    cli.say(f"\n{took // 60}:{took % 60:02d} minutes. The report: {options.output / 'report.html'}")


def _compare(argv: list[str]) -> None:
    """``alum-robustness compare``: one table of reports that exist."""
    parser = cli.make_parser(
        "alum-robustness compare",
        "Prints the models of several reports in one table, the most robust first.",
    )
    parser.add_argument("reports", type=Path, nargs="+", help="report.json files, or their folders")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="a new folder to write it to as leaderboard.md, with a picture of the accuracies",
    )
    options = parser.parse_args(argv)
    if options.output is not None:
        new_folder(options.output)
    report = joined([path / "report.json" if path.is_dir() else path for path in options.reports])
    said = [about(report), *report["notes"], *report["warnings"]]
    print(in_columns(leaderboard(report)), *map(paragraph, said), sep="\n")
    if options.output is not None:
        write_leaderboard(report, options.output)
        cli.say(f"\nWritten: {options.output / 'leaderboard.md'}")


def _synonyms(argv: list[str]) -> None:
    """``alum-robustness synonyms``: a file of synonyms, made of word vectors."""
    parser = cli.make_parser(
        "alum-robustness synonyms",
        "Makes the file that --synonyms reads: of each word the nearest others, by their vectors.",
    )
    parser.add_argument("vectors", type=Path, help="in each line a word and its numbers, in UTF-8")
    parser.add_argument("output", type=Path, help="a new file")
    parser.add_argument(
        "--neighbours",
        type=int,
        default=50,
        metavar="N",
        help="how many to keep for a word, at most (default: 50)",
    )
    parser.add_argument(
        "--min-cosine",
        type=float,
        default=0.5,
        metavar="COSINE",
        help="how near a neighbour must be: the least cosine of the two vectors (default: 0.5)",
    )
    options = parser.parse_args(argv)
    require_count("--neighbours", options.neighbours)
    output = new_file(options.output)
    count = write_synonyms(options.vectors, output, options.neighbours, options.min_cosine)
    cli.say(f"{options.output}: {count:,} words, each with its neighbours")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Every option as it was resolved."""
    chosen = {name: value for name, value in vars(options).items() if name != "path"}
    return {name: str(v) if isinstance(v, Path) else v for name, v in chosen.items()}


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("alum-robustness", _DESCRIPTION, _EPILOG)
    model = parser.add_argument_group("the models")
    model.add_argument(
        "--path",
        nargs="+",
        required=True,
        metavar="[NAME=]FILE",
        help="checkpoints (default name: that of the file's folder)",
    )
    add_model_options(model)
    text = parser.add_argument_group("the examples")
    text.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="a labelled TSV, CSV, JSON-lines, SQuAD or CoNLL file",
    )
    text.add_argument(
        "--subset",
        default="valid",
        metavar="NAME",
        help="without --input: which part of the binarised data (default: valid)",
    )
    add_table_options(parser)
    add_options(parser)
    out = parser.add_argument_group("where to, and how it is computed")
    out.add_argument(
        "--output",
        type=Path,
        default=Path("robustness"),
        metavar="DIR",
        help="folder of the report; where it has one of these checkpoints, or of some of them, it "
        "goes on (default: robustness)",
    )
    add_compute_options(out)
    return parser


def _models(given: Sequence[str]) -> dict[str, list[Path]]:
    """The checkpoints by the names of their models, in the order that they are named in."""
    models: dict[str, list[Path]] = {}
    for each in given:
        name, equals, file = each.partition("=")
        named = equals and not Path(each).exists()
        path = Path(file if named else each)
        if not named:
            name = path.absolute().parent.name
        if not name:
            raise UsageError(f"--path {each}: there is no name before the equals sign")
        existing_file(path)
        others = models.setdefault(name, [])
        if path.resolve() in map(Path.resolve, others):
            raise UsageError(f"--path {each}: the checkpoint is given twice")
        if others and not named:
            raise UsageError(
                f"--path {each}: another checkpoint is of a folder {name}, too: put NAME= before "
                "both, the same one only if they are seeds of one model"
            )
        others.append(path)
    return models


def _check_output(output: Path, paths: Sequence[Path]) -> None:
    """Raise a UsageError unless the folder is new, or has a report of some of these checkpoints."""
    path = output / "report.json"
    if not path.exists():
        if not (output.is_dir() and {*output.iterdir()} == {output / WORK}):  # that was stopped
            new_folder(output)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before = [Path(each["path"]) for model in found["models"] for each in model["checkpoints"]]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path} is no report of alum-robustness: remove it, or give another --output"
        ) from None
    given = {*map(Path.resolve, paths)}
    if others := [each for each in before if each.resolve() not in given]:
        raise UsageError(
            f"{output} holds the report of other checkpoints ({others[0]}): remove it, or give "
            "another --output"
        )


def _comparable(
    paths: Sequence[Path], options: argparse.Namespace
) -> tuple[Predictor, list[dict[str, float] | None]]:
    """The first model, and what the training of each took; all are looked at before measuring.

    Raises:
        UsageError: one cannot be loaded, or answers other questions than the first.
    """
    first = load_predictor(paths[0], options)
    training = [first.checkpoint.training]
    for path in paths[1:]:
        other = load_predictor(path, options)
        one, another = first.problem, other.problem
        if (one.name, one.labels) != (another.name, another.labels):
            raise UsageError(
                f"{path} answers with {another.answers}, {paths[0]} with {one.answers}: they "
                "cannot be compared"
            )
        training.append(other.checkpoint.training)
    return first, training


def _say_what_is_cut(predictor: Predictor, examples: Sequence[Example]) -> None:
    before = predictor.truncated
    for example in examples:
        predictor.inputs_of(example.texts)
    if count := predictor.truncated - before:
        cli.say(
            f"{count:,} of {len(examples):,} examples are too long for the model, which reads them "
            "without their ends"
        )
