"""From the records of every example to the report: each part says what there is to report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alum_fairseq.cli import progress
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.parts.part import (
    Curve,
    Measure,
    Part,
    Records,
    curve_name,
    title_of,
)
from alum_fairseq.robustness.statistics import Array, Columns

FORMAT = 1

# Fewer examples than this make every interval wide.
_FEW = 100


def build_report(
    *,
    data: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    parts: Sequence[Part],
    records: Mapping[str, Records],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    seconds: Mapping[str, Mapping[str, float]],
    created: str,
    seed: int = 1,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Everything that a report says, as numbers and text fit for strict JSON.

    Args:
        data: ``source``, ``examples`` (how many), ``kind`` (``classification``, ``regression`` or
            ``choices``), ``labels`` (in the order of the classes, or None), ``tolerance`` (of a
            regression, or None).
        models: for each its ``name`` and its ``checkpoints``, dicts with ``path`` and ``sha256``;
            several checkpoints of one model are its seeds. The first is what others are
            compared with.
        parts: what was measured; the first is that of the unchanged examples, and has all that
            others look at.
        records: of each part by its name, with the checkpoints counted through all models.
        settings: of the run, repeated as they are.
        versions: of the software.
        seconds: how long each checkpoint took for each part.
        created: when, as an ISO date.
        seed: of the resampling.
        resamples: of bootstrap and randomisation.

    Returns:
        The report; its numbers have six significant digits, and what is infinite or undefined
        is None.
    """
    report = {
        "format": FORMAT,
        "settings": dict(settings),
        "versions": dict(versions),
        "data": dict(data),
        "models": [dict(model) for model in models],
        "resamples": resamples,
        **_reported(parts, records, _spans(models), resamples, seed),
        "time": {"created": created, "seconds": dict(seconds)},
    }
    return json.loads(json.dumps(_rounded(report), allow_nan=False))


def _reported(
    parts: Sequence[Part],
    records: Mapping[str, Records],
    spans: Mapping[str, slice],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What the parts say, in the order of their ranks; ``spans`` has the checkpoints of models."""
    clean = records[parts[0].name]
    ranked = [(p, records[p.name]) for p in sorted(parts, key=lambda part: part.rank)]
    measures = [measure for part, found in ranked for measure in part.measures(found)]
    return {
        "measures": _adjust(
            [
                _estimate(measure, spans, resamples, seed)
                for measure in progress(measures, "statistics", len(measures))
            ]
        ),
        "curves": {
            curve_name(part, curve): _curve(curve, spans, resamples, seed)
            for part, found in ranked
            for curve in part.curves(found, clean)
        },
        "reliability": {
            name: _reliability(columns[span])
            for part, found in ranked
            if (columns := part.confidence(found))
            for name, span in spans.items()
        },
        "warnings": [
            *_few_examples(parts, records),
            *_few_checkpoints(spans),
            *(
                warning
                for name, span in spans.items()
                for part, found in ranked
                for warning in part.warnings(name, found[span])
            ),
        ],
        "examples": [
            example
            for part, found in ranked
            for name, span in spans.items()
            for example in part.worst(name, found[span], clean[span])
        ],
    }


def _spans(models: Sequence[Mapping[str, Any]]) -> dict[str, slice]:
    """Where the checkpoints of each model are among those of all."""
    spans, start = {}, 0
    for model in models:
        spans[model["name"]] = slice(start, start + len(model["checkpoints"]))
        start = spans[model["name"]].stop
    return spans


# Warnings of the whole.


def _few_examples(parts: Sequence[Part], records: Mapping[str, Records]) -> Iterator[str]:
    counts = {part.name: len(records[part.name].examples) for part in parts}
    few = [f"{title_of(name)} ({count})" for name, count in counts.items() if count < _FEW]
    if few:
        yield (
            f"Measured on fewer than {_FEW} examples, so that intervals are wide: {', '.join(few)}."
        )


def _few_checkpoints(spans: Mapping[str, slice]) -> Iterator[str]:
    if len(spans) > 1 and any(span.stop - span.start == 1 for span in spans.values()):
        yield (
            "A model with a single checkpoint: intervals and p-values speak of these checkpoints. "
            "Whether another seed of training would give the same needs several of each model."
        )


# From measures and curves to numbers.


def _estimate(
    measure: Measure, spans: Mapping[str, slice], resamples: int, seed: int
) -> dict[str, Any]:
    scale = 100 if measure.unit == "%" else 1
    statistic = measure.statistic
    values, draws = {}, {}
    for number, (name, span) in enumerate(spans.items()):
        checkpoints = measure.checkpoints[span]
        seeds = [scale * float(statistic(*columns)) for columns in checkpoints]
        draws[name] = scale * statistics.bootstrap(statistic, checkpoints, resamples, seed, number)
        values[name] = {**_bounds(float(np.mean(seeds)), draws[name]), "seeds": seeds}
    baseline, *others = spans
    return {
        "key": measure.key,
        "title": measure.title,
        "group": measure.group,
        "meaning": measure.meaning,
        "unit": measure.unit,
        "better": measure.better,
        "main": measure.main,
        "undefined": measure.undefined,
        "examples": len(measure.checkpoints[0][0]),
        "values": values,
        "comparisons": [
            _compare(measure, spans, values, draws, baseline, other, resamples, seed)
            for other in others
        ],
    }


def _bounds(value: float, draws: Array) -> dict[str, float]:
    low, high = statistics.interval(draws)
    return {"value": value, "low": float(low), "high": float(high)}


def _compare(
    measure: Measure,
    spans: Mapping[str, slice],
    values: Mapping[str, Any],
    draws: Mapping[str, Array],
    baseline: str,
    model: str,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    with np.errstate(invalid="ignore"):  # infinite medians
        bounds = _bounds(
            float(np.subtract(values[model]["value"], values[baseline]["value"])),
            draws[model] - draws[baseline],
        )
    ours, theirs = (measure.checkpoints[spans[name]] for name in (baseline, model))
    p = statistics.randomization_test(measure.statistic, ours, theirs, resamples, seed)
    return {
        "baseline": baseline,
        "model": model,
        "difference": bounds.pop("value"),
        **bounds,
        "p": p,
        "p_seeds": statistics.welch_test(values[baseline]["seeds"], values[model]["seeds"]),
    }


def _adjust(measures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every comparison the p-value that allows for how many there are."""
    comparisons = [one for measure in measures for one in measure["comparisons"]]
    ps = statistics.adjusted([one["p"] for one in comparisons])
    for one, p in zip(comparisons, ps, strict=True):
        one["p_adjusted"] = p
    return measures


def _curve(curve: Curve, spans: Mapping[str, slice], resamples: int, seed: int) -> dict[str, Any]:
    models = {}
    for number, (name, span) in enumerate(spans.items()):
        checkpoints = curve.checkpoints[span]
        low, high = statistics.interval(
            100 * statistics.bootstrap(curve.statistic, checkpoints, resamples, seed, number)
        )
        y = 100 * np.mean([curve.statistic(*columns) for columns in checkpoints], axis=0)
        models[name] = {"y": y.tolist(), "low": low.tolist(), "high": high.tolist()}
    return {"x": list(curve.x), "examples": len(curve.checkpoints[0][0]), "models": models}


def _reliability(checkpoints: Sequence[Columns]) -> list[dict[str, float | int]]:
    """Of all checkpoints of a model together."""
    columns = zip(*checkpoints, strict=True)
    return statistics.reliability(*(np.concatenate(column) for column in columns))


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _rounded(value: Any) -> Any:
    """The same with every float cut to six significant digits."""
    if isinstance(value, float):
        return _round(value)
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
