"""One table of the models of several reports, the most robust first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file
from alum_fairseq.robustness.report.summary import FORMAT
from alum_fairseq.robustness.report.wording import (
    aligned,
    heading,
    number,
    shortened,
    span,
    visible,
)

# What models are sorted by: the first that all of them have.
_SORTED_BY = ("attacks.worst", "attacks.mean", "clean.accuracy")
_SETTINGS = (
    *("examples", "attack_examples", "seed", "steps", "restarts", "objectives", "noise_rates"),
    *("edit", "max_edits", "max_queries", "max_candidates", "min_similarity"),
    *("similarity_encoder", "synonyms", "attack_lm", "wordnet"),
)
_ALSO = ("clean.ece", "linf.area", "l2.area", "attacks.worst")


def leaderboard(paths: Sequence[Path]) -> str:
    """The main measures of every model, with 95% intervals, and the warnings, for a terminal.

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
        if _measured(report) != _measured(first):
            raise UsageError(f"{path} and {paths[0]} are of different examples or settings")
        if others := {*report["settings"]["parts"]} ^ {*first["settings"]["parts"]}:
            parts = ", ".join(sorted(others))
            raise UsageError(f"{path} and {paths[0]} do not both have the parts {parts}")
        for model in report["models"]:
            if model["name"] in models:
                raise UsageError(
                    f"{path}: another model is called {model['name']}, too: make one of the "
                    "reports again with --path NAME=FILE"
                )
            models[model["name"]] = {one["key"]: one for one in report["measures"]}
    shown = [
        measure
        for measure in first["measures"]
        if (measure["main"] or measure["key"] in _ALSO)
        and all(measure["key"] in found for found in models.values())
    ]
    keys = [key for key in _SORTED_BY if all(key in found for found in models.values())]
    if not (shown and keys):
        raise UsageError("the reports have no measure in common")

    def value(name: str, key: str) -> Mapping[str, Any]:
        return models[name][key]["values"][name]

    names = sorted(models, key=lambda name: -(value(name, keys[0])["value"] or 0))
    rows = [["", *(shortened(name, 22) for name in names)]]
    for measure in shown:
        cells = [value(name, measure["key"]) for name in names]
        texts = [f"{number(one['value'], measure)} {span(one, measure)}".rstrip() for one in cells]
        rows.append([shortened(f"{measure['group']}: {heading(measure)}", 60), *texts])
    warnings = [visible(warning) for report in reports for warning in report["warnings"]]
    return "\n".join([aligned(iter(rows)), *dict.fromkeys(warnings)])


def _measured(report: Mapping[str, Any]) -> list[Any]:
    """What decides which examples were measured, and how hard they were attacked."""
    return [report["data"], *(report["settings"].get(name) for name in _SETTINGS)]


def _read(path: Path) -> dict[str, Any]:
    existing_file(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise UsageError(f"{path} is no report.json of alum-robustness")
    return report
