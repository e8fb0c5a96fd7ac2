"""One table of the models of several reports, the most robust first."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file
from alum_fairseq.robustness.report.summary import FORMAT
from alum_fairseq.robustness.report.wording import (
    aligned,
    capitalized,
    heading,
    number,
    shortened,
    span,
)

# What models are sorted by: the first that all of them have.
_SORTED_BY = ("attacks.worst", "attacks.mean", "clean.accuracy")
_ALSO = ("clean.ece", "linf.area", "l2.area", "attacks.worst")
_OF_ATTACKS = (".success", ".queries")


def joined(paths: Sequence[Path]) -> dict[str, Any]:
    """Several reports as one: the measures of all models, without comparisons.

    Checkpoints that are in two reports, of the same name, are taken once.

    Args:
        paths: of ``report.json`` files, made on the same examples.

    Raises:
        UsageError: one is no report, or of other examples, settings or parts than the first; two
            models are called the same; no measure is in all of them.
    """
    reports = [_read(path) for path in paths]
    first = reports[0]
    models: dict[str, Mapping[str, Any]] = {}
    for path, report in zip(paths, reports, strict=True):
        if any(report["data"][key] != first["data"][key] for key in ("sha256", "tolerance")):
            raise UsageError(
                f"{path} and {paths[0]} are of different examples: {_examples(report)}; and "
                f"{_examples(first)}"
            )
        if others := report["parts"].keys() ^ first["parts"].keys():
            parts = ", ".join(sorted(others))
            raise UsageError(f"{path} and {paths[0]} do not both have the parts {parts}")
        if differing := _differing(_settings(report), _settings(first)):
            raise UsageError(f"{path} and {paths[0]} have different settings: {differing}")
        for model in report["models"]:
            if model["name"] in models and _digests(model) != _digests(models[model["name"]]):
                raise UsageError(
                    f"{path}: another model is called {model['name']}, too: make one of the "
                    "reports again with --path NAME=FILE"
                )
            models.setdefault(model["name"], model)
    values = [{one["key"]: one["values"] for one in report["measures"]} for report in reports]
    measures = [
        {**one, "comparisons": [], "values": dict(ChainMap(*(each[one["key"]] for each in values)))}
        for one in first["measures"]
        if all(one["key"] in each for each in values)
    ]
    if not {one["key"] for one in measures} & {*_SORTED_BY}:
        raise UsageError("the reports have no measure in common")
    said = {
        key: list(dict.fromkeys(chain.from_iterable(report[key] for report in reports)))
        for key in ("notes", "warnings")
    }
    return {**first, **said, "measures": measures, "models": list(models.values())}


def leaderboard(report: Mapping[str, Any]) -> list[list[str]]:
    """The main measures of every model, with 95% intervals, and what its training took, as rows.

    The first is the head; the second column has the number of examples. The best model comes first.
    """
    models = _ranked(report)
    rows = [["", "examples", *(model["name"] for model in models)]]
    for measure in report["measures"]:
        key = measure["key"]
        if measure["main"] or key in _ALSO or key.endswith(_OF_ATTACKS):
            cells = [measure["values"][model["name"]] for model in models]
            texts = (f"{number(one['value'], measure)} {span(one, measure)}" for one in cells)
            group = capitalized(measure["group"].removeprefix("Attack on the "))
            count = f"{measure['examples']:,}"
            lower = " (lower is better)" if measure["better"] == "lower" else ""
            title = f"{group}: {heading(measure)}{lower}"
            rows.append([title, count, *map(str.rstrip, texts)])
    training = [_training(model) for model in models]
    return [*rows, ["Training: h:mm:ss, updates", "", *training]] if any(training) else rows


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """A leaderboard for a terminal."""
    head, *others = rows
    shown = [[shortened(name, 22) for name in head]]
    return aligned(iter(shown + [[shortened(name, 60), *cells] for name, *cells in others]))


def _ranked(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models, the best first; those that give one answer to every example last."""
    values = _sorted_by(report)["values"]
    return sorted(
        report["models"],
        key=lambda model: (
            model.get("constant", False),
            -(values[model["name"]]["value"] or 0),
        ),
    )


def _sorted_by(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The measure that models are sorted by."""
    every = {measure["key"]: measure for measure in report["measures"]}
    return next(every[key] for key in _SORTED_BY if key in every)


def about(report: Mapping[str, Any]) -> str:
    """What a leaderboard is of, and how to read it."""
    first = _sorted_by(report)
    quick = ", with --quick" if report["settings"].get("quick") else ""
    return (
        f"Measured on {_examples(report)}{quick}. In brackets: 95% intervals. The best model "
        f"stands first: by {first['group'].lower()}, {first['title'].lower()}. Two whose intervals "
        "overlap may be equally good: measure both in one report, which compares them example by "
        "example."
    )


def _digests(model: Mapping[str, Any]) -> list[str]:
    return [checkpoint["sha256"] for checkpoint in model["checkpoints"]]


def _training(model: Mapping[str, Any]) -> str:
    """The means over the checkpoints of a model that say it."""
    found = [one["training"] for one in model["checkpoints"] if one.get("training")]
    if not found:
        return ""
    seconds, updates = (mean(one[key] for one in found) for key in ("seconds", "updates"))
    return f"{timedelta(seconds=round(seconds))}, {updates:,.0f}"


def _examples(report: Mapping[str, Any]) -> str:
    """Which examples were measured, in words."""
    data, seed = report["data"], report["settings"]["seed"]
    within = "" if data["tolerance"] is None else f", tolerance {data['tolerance']:g}"
    return (
        f"{data['examples']:,} of {data['source']}, {data['attacked']:,} of them attacked, "
        f"--seed {seed}{within}"
    )


def _settings(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Those of each part, with what its numbers depend on besides."""
    parts, given = report["parts"], report["settings"]
    radii = {"radii": sorted(given.get("radii", ()))}
    more = {"linf": radii, "l2": radii, "clean": {"null_threshold": given.get("null_threshold")}}
    return {name: {**each, **more.get(name, {})} for name, each in parts.items()}


def _differing(parts: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The settings that two reports have different values of, each with both."""
    found = {}
    for part, settings in parts.items():
        one, other = dict(_flat(settings)), dict(_flat(others[part]))
        for name in {**one, **other}:
            values = [each.get(name) for each in (one, other)]
            if values[0] != values[1]:
                found.setdefault(f"{name} ({values[0]} and {values[1]})", []).append(part)
    return "; ".join(f"{text} of {', '.join(names)}" for text, names in found.items())


def _flat(settings: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _read(path: Path) -> dict[str, Any]:
    existing_file(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if not isinstance(report, dict) or "format" not in report:
        raise UsageError(f"{path} is no report.json of alum-robustness")
    if report["format"] != FORMAT:
        raise UsageError(
            f"{path} was written by another version of alum-robustness: its format is "
            f"{report['format']}, here it is {FORMAT}; measure again"
        )
    return report
