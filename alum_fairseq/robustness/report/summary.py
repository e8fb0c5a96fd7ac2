"""From the records of every example to the report: each part says what there is to report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alum_fairseq.cli import progress
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.parts.clean import only_answers, only_right
from alum_fairseq.robustness.parts.part import Curve, Measure, Part, Records, curve_name, title_of
from alum_fairseq.robustness.report.wording import short_name
from alum_fairseq.robustness.statistics import Array, Columns, Statistic

FORMAT = 2

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
    notes: Sequence[str] = (),
    seed: int = 1,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Everything that a report says, as numbers and text fit for strict JSON.

    Args:
        data: ``source``, ``examples`` (how many), ``kind`` (the problem's name, or
            ``choices``), ``labels`` (or None), ``tolerance`` (of a regression, or None).
        models: for each its ``name`` and its ``checkpoints``, dicts with ``path`` and ``sha256``;
            these are its seeds. The first model is what others are compared with.
        parts: what was measured; the first is that of the unchanged examples, and has all that
            others look at.
        records: of each part by its name, with the checkpoints counted through all models.
        seconds: how long each checkpoint took for each part.
        created: when, as an ISO date.
        notes: what a reader must know of how it was measured, a line each.
        resamples: of the bootstrap.

    Returns:
        The report; its numbers have six significant digits, and None for what is not finite.
    """
    spans, stop = {}, 0
    for model in models:
        start, stop = stop, stop + len(model["checkpoints"])
        spans[model["name"]] = slice(start, stop)
    only = only_answers(records[parts[0].name])
    report = {
        "format": FORMAT,
        "settings": settings,
        "versions": versions,
        "data": data,
        "models": [
            {**model, "constant": all(answer is not None for answer in only[spans[model["name"]]])}
            for model in models
        ],
        "parts": {part.name: part.settings for part in parts},
        "notes": notes,
        "resamples": resamples,
        **_of_parts(parts, records, _Numbers(spans, resamples, seed)),
        "time": {"created": created, "seconds": seconds},
    }
    return json.loads(json.dumps(_rounded(report), allow_nan=False))


def _of_parts(
    parts: Sequence[Part], records: Mapping[str, Records], numbers: _Numbers
) -> dict[str, Any]:
    """What the parts say, in the order of their ranks."""
    clean, spans = records[parts[0].name], numbers.spans
    ranked = [(p, records[p.name]) for p in sorted(parts, key=lambda part: part.rank)]
    (first, unchanged), *attacks = ranked
    measures = [
        *first.measures(unchanged),
        *_together(attacks, clean),
        *(measure for part, found in attacks for measure in part.measures(found)),
    ]
    return {
        "measures": _adjusted(
            [
                numbers.of_measure(measure)
                for measure in progress(measures, "statistics", len(measures))
            ]
        ),
        "curves": {
            curve_name(part, curve): numbers.of_curve(curve)
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
            *_little_evidence(parts, records, spans),
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


def _together(attacks: Sequence[tuple[Part, Records]], clean: Records) -> Iterator[Measure]:
    """What is left under all attacks on the clean examples, of those that all of them met."""
    attacks = [(part, found) for part, found in attacks if part.is_attack]
    met = [set(found.examples) for _, found in attacks]
    common = [example for example in clean.examples if all(example in each for each in met)]
    mains = [
        measure
        for part, found in attacks
        for measure in part.measures(found.on(common))
        if measure.main
    ]
    if not (mains and common):
        return
    # A mean over examples, of each by itself: attacks x checkpoints x examples.
    left = np.array(
        [
            [
                main.statistic(*(column[:, None] for column in columns))
                for columns in main.checkpoints
            ]
            for main in mains
        ],
        dtype=float,
    )
    names = "; ".join(", ".join(short_name(main.group, main.title)) for main in mains)
    for key, title, values, meaning in (
        ("mean", "mean", left.mean(0), "What is left, on average over the attacks"),
        ("worst", "worst", left.min(0), "What is left where each example meets its worst attack"),
    ):
        yield Measure(
            f"attacks.{key}", f"{clean.accuracy}, {title}", "All attacks together",
            f"{meaning}: {names}.",
            statistics.mean, [(row,) for row in values], main=key == "mean",
        )  # fmt: skip


def _little_evidence(
    parts: Sequence[Part], records: Mapping[str, Records], spans: Mapping[str, slice]
) -> Iterator[str]:
    counts = {part.name: len(records[part.name].examples) for part in parts}
    few = [f"{title_of(name)} ({count})" for name, count in counts.items() if count < _FEW]
    if few:
        yield (
            f"Measured on fewer than {_FEW} examples, so that intervals are wide: {', '.join(few)}."
        )
    clean = records[parts[0].name]
    if (answer := only_right(clean)) is not None:
        yield (
            f"All examples have the same right answer ({clean.problem.shown(answer)}): a model "
            "that always gives it looks robust, whatever it knows."
        )
    if len(spans) > 1 and any(span.stop - span.start == 1 for span in spans.values()):
        yield (
            "A model with a single checkpoint: intervals and p-values speak of these checkpoints. "
            "Whether another seed of training would give the same needs several of each model."
        )


@dataclass(frozen=True)
class _Numbers:
    """Makes numbers of measures and curves; ``spans`` says which checkpoints are of which model."""

    spans: Mapping[str, slice]
    resamples: int
    seed: int

    def of_measure(self, measure: Measure) -> dict[str, Any]:
        scale = 100 if measure.unit == "%" else 1
        draws = self._draws(measure.statistic, measure.checkpoints)
        values = {}
        for name, span in self.spans.items():
            columns = measure.checkpoints[span]
            seeds = [scale * float(measure.statistic(*each)) for each in columns]
            of_share = measure.is_share and measure.unit == "%"
            examples = _known(measure.statistic, columns) if of_share else None
            bounds = _bounds(draws[name], scale, examples)
            values[name] = {"value": float(np.mean(seeds)), **bounds, "seeds": seeds}
        baseline, *others = self.spans
        unshown = ("statistic", "checkpoints", "is_share")
        shown = {k: v for k, v in vars(measure).items() if k not in unshown}
        return {
            **shown,
            "examples": len(measure.checkpoints[0][0]),
            "values": values,
            "comparisons": [
                self._compared(values, draws, scale, baseline, other) for other in others
            ],
        }

    def _compared(
        self,
        values: Mapping[str, Any],
        draws: Mapping[str, Array],
        scale: float,
        baseline: str,
        model: str,
    ) -> dict[str, Any]:
        ours, theirs = values[model], values[baseline]
        with np.errstate(invalid="ignore"):  # infinite medians
            difference = np.subtract(ours["value"], theirs["value"])
            drawn = draws[model] - draws[baseline]
            p, bounds = statistics.p_value(drawn), _bounds(drawn, scale)
            if np.ptp(draws[model]) == np.ptp(draws[baseline]) == 0:  # each has all, or none
                low, high = ours["low"] - theirs["high"], ours["high"] - theirs["low"]
                p, bounds = max(p, float(low <= 0 <= high)), {"low": low, "high": high}
        return {
            "baseline": baseline,
            "model": model,
            "difference": float(difference),
            **bounds,
            "p": p if np.isfinite(difference) else float("nan"),
            "p_seeds": statistics.welch_test(theirs["seeds"], ours["seeds"]),
        }

    def of_curve(self, curve: Curve) -> dict[str, Any]:
        draws = self._draws(curve.statistic, curve.checkpoints)
        examples = len(curve.checkpoints[0][0])
        models = {}
        for name, span in self.spans.items():
            shares = [curve.statistic(*columns) for columns in curve.checkpoints[span]]
            bounds = _bounds(draws[name], 100, examples)
            models[name] = {"y": 100 * np.mean(shares, axis=0), **bounds}
        return {"x": curve.x, "examples": examples, "models": models}

    def _draws(self, statistic: Statistic, checkpoints: Sequence[Columns]) -> dict[str, Array]:
        return {
            name: statistics.bootstrap(
                statistic, checkpoints[span], self.resamples, self.seed, number
            )
            for number, (name, span) in enumerate(self.spans.items())
        }


def _known(statistic: Statistic, checkpoints: Sequence[Columns]) -> int:
    """Of how many examples a share is: some have nothing to count."""
    each = [statistic(*(column[:, None] for column in columns)) for columns in checkpoints]
    return int((~np.isnan(each)).any(0).sum())


def _bounds(draws: Array, scale: float, examples: int | None = None) -> dict[str, Array]:
    low, high = statistics.interval(draws, examples)
    return {"low": scale * low, "high": scale * high}


def _adjusted(measures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every comparison the p-value that allows for how many there are."""
    comparisons = [one for measure in measures for one in measure["comparisons"]]
    ps = statistics.adjusted([one["p"] for one in comparisons])
    for one, p in zip(comparisons, ps, strict=True):
        one["p_adjusted"] = p
    return measures


def _reliability(checkpoints: Sequence[Columns]) -> list[dict[str, float | int]]:
    """Of all checkpoints of a model together."""
    return statistics.reliability(*map(np.concatenate, zip(*checkpoints, strict=True)))


def _rounded(value: Any) -> Any:
    """The same with every float cut to six significant digits; None for what is not finite."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
