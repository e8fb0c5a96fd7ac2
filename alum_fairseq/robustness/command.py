"""``alum-robustness``: how robust are fine-tuned checkpoints, and is one more so than another?"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import alum_fairseq
from alum_fairseq import cli
from alum_fairseq.data.tables import add_table_options, table_format
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, existing_folder
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.options import (
    add_compute_options,
    add_model_options,
    check_compute_options,
    load_predictor,
)
from alum_fairseq.robustness.examples import from_binarized, from_table, sample
from alum_fairseq.robustness.parts import Clean, Noise, Part, Words
from alum_fairseq.robustness.plan import Effort, add_options, effort_of, parts_of
from alum_fairseq.robustness.report.publish import write_report
from alum_fairseq.robustness.report.summary import build_report
from alum_fairseq.robustness.report.wording import table
from alum_fairseq.robustness.sets import AdversarialSet, read_set
from alum_fairseq.robustness.store import Record, Store
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example

_DESCRIPTION = """\
Measures how robust fine-tuned checkpoints are, and writes a report.

  alum-robustness --path finetuned/checkpoint_best.pt
  alum-robustness --path plain=plain1/checkpoint_best.pt plain=plain2/checkpoint_best.pt \\
      alum=alum1/checkpoint_best.pt alum=alum2/checkpoint_best.pt \\
      --input test.tsv --columns sentence --label label --output report
"""
_EPILOG = """\
Checkpoints of one NAME are seeds of one model; the first model is what others are compared with.
Without --input, the subset of the binarised data is read. A run that was stopped goes on when the
same command is given again; so does one with more checkpoints or parts.
"""

_CHUNK = 64  # examples; what is lost when a run is stopped
_WORK = "work"
# What a report calls a problem, where it has a name of its own.
_KINDS = {"multiple_choice": "choices"}


@dataclass
class _Model:
    """Checkpoints that go by one name."""

    name: str
    paths: list[Path] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    check_compute_options(arguments)
    output = arguments.output.absolute()
    existing_folder(next(path for path in (output, *output.parents) if path.exists()))
    effort = effort_of(arguments)
    models = _models(arguments.path)
    paths = [path for model in models for path in model.paths]
    predictors = _Predictors(arguments, paths)
    data = _Data.read(arguments, predictors.first, effort)
    parts = _runnable(parts_of(arguments, effort, data.sets), arguments, data)
    examples = {part.name: data.examples_of(part) for part in parts}
    _say_what_is_cut(predictors.first, data.examples)
    begun = time.monotonic()
    records, seconds = _measure(parts, examples, predictors, data, arguments)
    report = build_report(
        data=data.described(),
        models=[
            {
                "name": model.name,
                "checkpoints": [
                    {"path": str(path), "sha256": _digest(path)} for path in model.paths
                ],
            }
            for model in models
        ],
        examples=examples,
        records=records,
        settings=_settings(arguments, effort)
        | {"parts": [part.name for part in parts], "tolerance": data.tolerance},
        versions=_versions(),
        seconds={str(path): took for path, took in zip(paths, seconds, strict=True)},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=arguments.seed,
        resamples=effort.resamples,
    )
    write_report(report, arguments.output)
    print(table(report))
    took = int(time.monotonic() - begun)
    cli.say(
        f"\n{took // 60}:{took % 60:02d} minutes. The report: {arguments.output / 'report.html'}"
    )


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
        "--input", type=Path, metavar="FILE", help="a labelled TSV, CSV or JSON-lines file"
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
        help="folder of the report (default: robustness)",
    )
    add_compute_options(out)
    return parser


def _models(given: Sequence[str]) -> list[_Model]:
    """The checkpoints by the names of their models, in the order that they are named in."""
    models: dict[str, _Model] = {}
    for each in given:
        name, equals, file = each.partition("=")
        path = Path(file if equals and not Path(each).exists() else each)
        if not equals or Path(each).exists():
            name = path.absolute().parent.name
        if not name:
            raise UsageError(f"--path {each}: there is no name before the equals sign")
        existing_file(path)
        model = models.setdefault(name, _Model(name))
        if path.resolve() in map(Path.resolve, model.paths):
            raise UsageError(f"--path {each}: the checkpoint is given twice")
        model.paths.append(path)
    return list(models.values())


class _Predictors:
    """The models, loaded when they are needed; all are looked at before anything is measured.

    Raises:
        UsageError: one cannot be loaded, or answers other questions than the first.
    """

    def __init__(self, arguments: argparse.Namespace, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._arguments = arguments
        self.first = load_predictor(paths[0], arguments)
        for path in paths[1:]:
            other = load_predictor(path, arguments)
            one, another = self.first.problem, other.problem
            if (one.name, one.labels) != (another.name, another.labels):
                raise UsageError(
                    f"{path} answers with {another.answers}, {paths[0]} with {one.answers}: they "
                    "cannot be compared"
                )

    def load(self, place: int) -> Predictor:
        """The model of a checkpoint, by its place among all."""
        return self.first if place == 0 else load_predictor(self.paths[place], self._arguments)


@dataclass(frozen=True)
class _Data:
    """What the models are measured on."""

    source: str
    kind: str
    labels: list[str] | None
    tolerance: float | None
    examples: list[Example]
    attacked: list[Example]
    sets: list[AdversarialSet]

    @classmethod
    def read(cls, arguments: argparse.Namespace, predictor: Predictor, effort: Effort) -> _Data:
        """Read the examples, and draw those that are measured."""
        columns, label = arguments.columns, arguments.label
        if arguments.input is None:
            if columns or label:
                raise UsageError("--columns and --label are those of --input, which is not given")
            source = f"{predictor.checkpoint.data}: {arguments.subset}"
            examples = from_binarized(predictor.checkpoint.data, arguments.subset, predictor)
        else:
            columns, label = _columns(arguments, predictor)
            source = str(arguments.input)
            examples = from_table(
                arguments.input, table_format(arguments), columns, label, predictor
            )
        tolerance = _tolerance(arguments, examples, predictor)
        chosen = sample(examples, effort.examples, arguments.seed)
        return cls(
            source,
            _KINDS.get(predictor.problem.name, predictor.problem.name),
            list(predictor.problem.labels) or None,
            tolerance,
            chosen,
            sample(chosen, effort.attack_examples, arguments.seed),
            _sets(arguments, columns, label, predictor, effort),
        )

    def examples_of(self, part: Part) -> list[Example]:
        """The examples that a part looks at."""
        for each in self.sets:
            if part.name == f"set:{each.name}":
                return each.examples
        return self.examples if isinstance(part, Clean | Noise) else self.attacked

    def described(self) -> dict[str, Any]:
        """For the report."""
        return {
            "source": self.source,
            "examples": len(self.examples),
            "kind": self.kind,
            "labels": self.labels,
            "tolerance": self.tolerance,
        }


def _columns(arguments: argparse.Namespace, predictor: Predictor) -> tuple[list[str], str]:
    """The columns of the texts and of the label: those given, else those of the training data."""
    columns, label = arguments.columns, arguments.label
    if columns and label:
        return columns, label
    record = predictor.checkpoint.record
    if record is None:
        raise UsageError(f"give --columns and --label, the columns of {arguments.input}")
    return columns or record.columns, label or record.label_column


def _tolerance(
    arguments: argparse.Namespace, examples: Sequence[Example], predictor: Predictor
) -> float | None:
    """How far from the answer a number still is right; None for classes."""
    answers = [example.answer for example in examples]
    problem = predictor.problem.within(arguments.tolerance, answers)
    return None if problem.categorical else problem.tolerance


def _sets(
    arguments: argparse.Namespace,
    columns: list[str] | None,
    label: str | None,
    predictor: Predictor,
    effort: Effort,
) -> list[AdversarialSet]:
    mapped = {}
    for each in arguments.map_labels:
        theirs, equals, ours = each.partition("=")
        if not (theirs and equals and ours):
            raise UsageError(f"--map-labels {each}: it must be LABEL=LABEL[,LABEL...]")
        mapped[theirs] = ours
    if mapped and not arguments.adversarial_set:
        raise UsageError("--map-labels is for --adversarial-set, which is not given")
    sets: dict[str, AdversarialSet] = {}
    for spec in arguments.adversarial_set:
        found = read_set(
            spec,
            columns,
            label,
            table_format(arguments),
            list(predictor.problem.labels) or None,
            mapped or None,
        )
        if found.name in sets:
            raise UsageError(
                f"--adversarial-set {spec}: another one is called {found.name}: put NAME= before it"
            )
        chosen = sample(found.examples, effort.examples, arguments.seed)
        predictor.check_inputs(len(chosen[0].texts))
        sets[found.name] = AdversarialSet(found.name, chosen)
    return list(sets.values())


def _runnable(parts: list[Part], arguments: argparse.Namespace, data: _Data) -> list[Part]:
    """The parts without those that nobody asked for and that are not installed."""
    if arguments.textattack and data.labels is None:
        raise UsageError("--textattack is for classes, but the model predicts numbers")
    kept, left_out = [], []
    for part in parts:
        try:
            part.check()
        except UsageError as error:
            if arguments.parts or not isinstance(part, Words):
                raise
            left_out.append(f"left out: {error}")
        else:
            kept.append(part)
    texts = len(data.examples[0].texts)
    beyond = [number for number in arguments.edit or () if number > texts]
    if beyond:
        raise UsageError(
            f"--edit is {beyond[0]}: an example has {texts} text{'' if texts == 1 else 's'}"
        )
    for message in left_out:
        cli.say(message)
    return kept


def _say_what_is_cut(predictor: Predictor, examples: Sequence[Example]) -> None:
    before = predictor.truncated
    for example in examples:
        predictor.inputs_of(example.texts)
    if count := predictor.truncated - before:
        cli.say(
            f"{count:,} of {len(examples):,} examples are too long for the model, which reads them "
            "without their ends"
        )


def _measure(
    parts: Sequence[Part],
    examples: Mapping[str, Sequence[Example]],
    predictors: _Predictors,
    data: _Data,
    arguments: argparse.Namespace,
) -> tuple[dict[str, list[list[Record]]], list[dict[str, float]]]:
    """Every part of every checkpoint: its records, and the seconds that it took."""
    records: dict[str, list[list[Record]]] = {part.name: [] for part in parts}
    seconds: list[dict[str, float]] = []
    total = len(predictors.paths) * sum(part.cost * len(examples[part.name]) for part in parts)
    with cli.counter("measuring", "passes", round(total)) as counter:
        for place, path in enumerate(predictors.paths):
            predictor = predictors.load(place)
            subject = Subject(predictor, data.tolerance, arguments.max_tokens, arguments.seed)
            model = _identity(path, predictor, data, arguments)
            seconds.append({})
            for part in parts:
                chosen = examples[part.name]
                key = {**model, "part": part.name, "settings": part.settings}
                key["examples"] = _text_digest([asdict(example) for example in chosen])
                store = Store(arguments.output / _WORK, key)
                counter.set_description(f"{path.parent.name}: {part.name}")
                found: list[Record] = [{}] * len(chosen)
                for number, chunk in enumerate(_chunks(chosen)):
                    if number not in store.chunks:
                        began = time.monotonic()
                        made = part.measure(subject, [chosen[i] for i in chunk])
                        store.add(number, made, time.monotonic() - began)
                    for i, record in zip(chunk, store.chunks[number][0], strict=True):
                        found[i] = record
                    counter.update(round(part.cost * len(chunk)))
                records[part.name].append(found)
                seconds[-1][part.name] = round(sum(took for _, took in store.chunks.values()), 3)
    return records, seconds


def _chunks(examples: Sequence[Example]) -> Iterator[list[int]]:
    """The places of the examples, the longest first, so that a batch has little padding."""
    order = sorted(range(len(examples)), key=lambda i: -sum(map(len, examples[i].texts)))
    for begin in range(0, len(order), _CHUNK):
        yield order[begin : begin + _CHUNK]


def _identity(
    path: Path, predictor: Predictor, data: _Data, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All that the records of a checkpoint depend on, besides part and examples."""
    return {
        "checkpoint": _digest(path),
        "vocabulary": [_digest(file) for file in predictor.checkpoint.vocabulary.files],
        "head": predictor.checkpoint.head,
        "labels": list(predictor.problem.labels) or None,
        "scale": predictor.problem.scale,
        "tolerance": data.tolerance,
        "max_tokens": arguments.max_tokens,
        "device": str(predictor.device),
        "code": _code(),
        "versions": _versions(),
    }


def _digest(path: Path) -> str:
    return _digest_of(path, path.stat().st_mtime_ns)


@cache
def _digest_of(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    """Another version of what measures is another measurement."""
    files = sorted(Path(alum_fairseq.__file__).parent.rglob("*.py"))
    return _text_digest([_digest(file) for file in files])


def _settings(arguments: argparse.Namespace, effort: Effort) -> dict[str, Any]:
    """Every option as it was resolved."""
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name != "path"
    }
    return given | {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(effort).items()
    }


def _versions() -> dict[str, str]:
    found = {"alum_fairseq": alum_fairseq.__version__, "python": platform.python_version()}
    for name in ("fairseq", "torch", "numpy", "scipy", "nltk", "textattack"):
        for package in (name, f"{name}-fixed"):
            try:
                found[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
