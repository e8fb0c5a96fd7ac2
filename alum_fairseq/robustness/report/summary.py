"""From the records of every example to the report: measures, comparisons, curves, warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alum_fairseq.cli import progress
from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.statistics import Array, Columns, Statistic
from alum_fairseq.robustness.types import Example

FORMAT = 1
RADII = (0.01, 0.03, 0.1)
NORMS = {"linf": "L-infinity", "l2": "L2"}

# Fewer examples than this make every interval wide.
_FEW = 100
_WORST = 20
_POINTS = 60  # of a curve over epsilon

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The records of one part.

    Attributes:
        part: its name.
        examples: that it was measured on.
        checkpoints: for each checkpoint a record of each example.
    """

    part: str
    examples: Sequence[Example]
    checkpoints: Sequence[Sequence[Record]]

    def column(self, read: Callable[[Record], Any]) -> list[Array]:
        """For each checkpoint what ``read`` finds in its records, one entry an example."""
        return [np.array([read(record) for record in records]) for records in self.checkpoints]


@dataclass(frozen=True)
class Measure:
    """A number of every model.

    Attributes:
        key: its name for programs.
        title: its name for readers.
        group: the heading that it stands under.
        meaning: what it says, in a sentence.
        statistic: what is computed.
        checkpoints: of which columns, for each checkpoint.
        unit: ``%`` multiplies it by 100.
        better: ``higher``, ``lower``, or None.
        main: whether it belongs in the overview.
        undefined: what is shown in place of a value that is infinite or undefined.
    """

    key: str
    title: str
    group: str
    meaning: str
    statistic: Statistic
    checkpoints: Sequence[Columns]
    unit: str = "%"
    better: str | None = "higher"
    main: bool = False
    undefined: str = "-"


def build_report(
    *,
    data: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Sequence[Example]],
    records: Mapping[str, Sequence[Sequence[Record]]],
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
        examples: of each part, in the order of its records. ``clean`` must be there, and have
            those that any other part but a set has.
        records: ``records[part][k][i]`` is that of example i by checkpoint k, counted through all
            models.
        settings: of the run, repeated as they are; ``radii`` are those at which accuracy under
            attack is reported (a list, or a list for each of ``linf`` and ``l2``).
        versions: of the software.
        seconds: how long each checkpoint took for each part.
        created: when, as an ISO date.
        seed: of the resampling.
        resamples: of bootstrap and randomisation.

    Returns:
        The report; its numbers have six significant digits, and what is infinite or undefined
        is None.
    """
    parts = {part: Records(part, examples[part], records[part]) for part in records}
    measures = list(_measures(parts, data, settings))
    spans = _spans(models)
    report = {
        "format": FORMAT,
        "settings": dict(settings),
        "versions": dict(versions),
        "data": dict(data),
        "models": [dict(model) for model in models],
        "resamples": resamples,
        "measures": _adjust(
            [
                _estimate(measure, spans, resamples, seed)
                for measure in progress(measures, "statistics", len(measures))
            ]
        ),
        "curves": {
            name: _curve(curve, spans, resamples, seed) for name, curve in _curves(parts).items()
        },
        "reliability": _reliability(parts["clean"], spans) if _has_confidence(data) else {},
        "warnings": list(_warnings(parts, spans, data)),
        "examples": _worst_examples(parts, spans),
        "time": {"created": created, "seconds": dict(seconds)},
    }
    return json.loads(json.dumps(_rounded(report), allow_nan=False))


def _spans(models: Sequence[Mapping[str, Any]]) -> dict[str, slice]:
    """Where the checkpoints of each model are among those of all."""
    spans, start = {}, 0
    for model in models:
        spans[model["name"]] = slice(start, start + len(model["checkpoints"]))
        start = spans[model["name"]].stop
    return spans


def _has_confidence(data: Mapping[str, Any]) -> bool:
    return data["kind"] != "regression"


# What is measured.


def _measures(
    parts: Mapping[str, Records], data: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[Measure]:
    share = "Accuracy" if _has_confidence(data) else "Within tolerance"
    yield from _clean(parts["clean"], data, share)
    for norm in NORMS:
        if norm in parts:
            radii = settings.get("radii", RADII)
            radii = radii[norm] if isinstance(radii, Mapping) else radii
            yield from _embeddings(parts[norm], sorted(radii), share)
    if "noise" in parts:
        yield from _noise(parts["noise"], share)
    for part in _attacks(parts):
        yield from _attack(parts[part], share)
    if "smoothness" in parts:
        yield from _smoothness(parts["smoothness"], _has_confidence(data))
    for part in parts:
        if part.startswith("set:"):
            name = part.removeprefix("set:")
            meaning = f"Right answers on the set {name}; an example counts as in clean data."
            yield _share(parts[part], part, f"{share} on {name}", "Adversarial sets", meaning)


def part_name(part: str) -> str:
    """A part's name for readers."""
    names = {**NORMS, "greedy": "misspellings", "wordnet": "synonyms"}
    return names.get(part, part.removeprefix("textattack:").removeprefix("set:"))


def _attacks(parts: Iterable[str]) -> list[str]:
    """The parts that change words until the model fails."""
    return [
        part for part in parts if part in ("greedy", "wordnet") or part.startswith("textattack:")
    ]


def _share(part: Records, key: str, title: str, group: str, meaning: str) -> Measure:
    correct = part.column(lambda record: record["correct"])
    columns = [(column,) for column in correct]
    return Measure(f"{key}.accuracy", title, group, meaning, statistics.mean, columns, main=True)


def _clean(clean: Records, data: Mapping[str, Any], share: str) -> Iterator[Measure]:
    right = "Right answers" if _has_confidence(data) else "Predictions near enough to the answer"
    meaning = f"{right}, on {len(clean.examples)} unchanged examples."
    yield _share(clean, "clean", share, "Clean", meaning)
    if data["kind"] == "regression":
        yield from _correlations(clean)
    if data["kind"] == "classification":
        yield from _of_classes(clean, data["labels"])
    loss = [(column,) for column in clean.column(lambda record: record["loss"])]
    unit, meaning = ("nats", "Minus the logarithm of the right answer's probability.")
    if data["kind"] == "regression":
        unit, meaning = ("", "The squared error.")
    yield Measure(
        "clean.loss", "Loss", "Clean", meaning, statistics.mean, loss, unit, better="lower"
    )
    if _has_confidence(data):
        yield Measure(
            "clean.ece", "Calibration error", "Clean",
            "How far the model's confidence is from its accuracy, over "
            f"{statistics.BINS} bins of confidence (expected calibration error; it comes out too "
            "large on few examples, and so does its interval).",
            statistics.calibration_error, _calibration(clean), better="lower",
        )  # fmt: skip


def _correlations(clean: Records) -> Iterator[Measure]:
    found = clean.column(lambda record: float(record["prediction"]))
    wanted = np.array([float(example.answer) for example in clean.examples])
    columns = [(column, wanted) for column in found]
    yield Measure(
        "clean.pearson", "Pearson", "Clean",
        "Linear correlation of predictions and answers.", statistics.pearson, columns,
    )  # fmt: skip
    yield Measure(
        "clean.spearman", "Spearman", "Clean",
        "Correlation of the ranks of predictions and answers.", statistics.spearman, columns,
    )  # fmt: skip


def _of_classes(clean: Records, labels: Sequence[str]) -> Iterator[Measure]:
    numbers = {label: number for number, label in enumerate(labels)}
    found = clean.column(lambda record: numbers[record["prediction"]])
    wanted = np.array([numbers[example.answer] for example in clean.examples])
    columns = [(column, wanted) for column in found]
    yield Measure(
        "clean.mcc", "Matthews correlation", "Clean",
        "Correlation of predictions and answers; 0 is what blind guessing gives.",
        statistics.matthews(len(labels)), columns,
    )  # fmt: skip
    of = f"of {labels[1]}" if len(labels) == 2 else "mean over the classes"
    yield Measure(
        "clean.f1", f"F1, {of}", "Clean",
        "Harmonic mean of precision and recall.", statistics.f1(len(labels)), columns,
    )  # fmt: skip


def _calibration(clean: Records) -> list[Columns]:
    confidence = clean.column(lambda record: record["confidence"])
    correct = clean.column(lambda record: float(record["correct"]))
    return list(zip(confidence, correct, strict=True))


def _epsilon(record: Record) -> float:
    return math.inf if record["epsilon"] is None else record["epsilon"]


def _embeddings(part: Records, radii: Sequence[float], share: str) -> Iterator[Measure]:
    group = f"Attack on the embeddings, {NORMS[part.part]}"
    columns = [(column,) for column in part.column(_epsilon)]
    for radius in radii:
        yield Measure(
            f"{part.part}.accuracy.{radius:g}", f"{share}, radius {radius:g}", group,
            f"What is left when an attack may move embeddings by {radius:g} times their root mean "
            "square.",
            lambda column, radius=radius: statistics.mean(column > radius), columns,
            main=radius == radii[len(radii) // 2],
        )  # fmt: skip
    yield Measure(
        f"{part.part}.area", f"{share}, mean to {radii[-1]:g}", group,
        f"Mean over all radii from 0 to {radii[-1]:g}: the area under the curve.",
        statistics.area_up_to(radii[-1]), columns,
    )  # fmt: skip
    yield Measure(
        f"{part.part}.median", "Median radius that breaks", group,
        "Of the examples that were right without an attack, half are broken by a smaller one.",
        statistics.median_above_zero, columns, unit="", undefined="none found",
    )  # fmt: skip


def _noises(part: Records) -> dict[str, dict[float, str]]:
    """For each kind of noise its rates, in order, with the key of the outcome."""
    kinds: dict[str, dict[float, str]] = {}
    for key in part.checkpoints[0][0]:
        kind, rate = key.rsplit(" ", 1)
        kinds.setdefault(kind, {})[float(rate)] = key
    return {kind: dict(sorted(rates.items())) for kind, rates in sorted(kinds.items())}


def _noise(part: Records, share: str) -> Iterator[Measure]:
    group = "Character noise"
    kinds = _noises(part)
    rates = sorted(set().union(*kinds.values()))
    middle = rates[len(rates) // 2]

    def noised(key: str, what: str, keys: list[str], of: str, main: bool = False) -> Measure:
        columns = part.column(lambda record: np.mean([record[one]["correct"] for one in keys]))
        return Measure(
            f"noise.{key}", f"{share}, {what}", group,
            f"What is left when {of}.", statistics.mean, [(column,) for column in columns],
            main=main,
        )  # fmt: skip

    for rate in rates:
        keys = [found[rate] for found in kinds.values() if rate in found]
        of = f"{100 * rate:g}% of the words are misspelt, mean over {', '.join(kinds)}"
        yield noised(f"{rate:g}", f"{100 * rate:g}% of words", keys, of, main=rate == middle)
    for kind, found in kinds.items():
        if len(kinds) > 1 and middle in found:
            of = f"{100 * middle:g}% of the words are misspelt by this kind alone"
            what = f"{kind}, {100 * middle:g}%"
            yield noised(f"{kind}.{middle:g}", what, [found[middle]], of)


def _was_right(outcome: Record) -> bool:
    """Whether the model was right before the attack: one that was wrong is left unchanged."""
    return outcome["correct"] or outcome["edits"] > 0


def _attack(part: Records, share: str) -> Iterator[Measure]:
    group = f"Attack on the words, {part_name(part.part)}"
    yield _share(
        part, part.part, share, group, "What is left when words are changed until the model fails."
    )
    right = part.column(_was_right)
    broken = part.column(lambda outcome: _was_right(outcome) and not outcome["correct"])
    queries = part.column(lambda outcome: outcome["queries"])
    yield Measure(
        f"{part.part}.success", "Success rate", group,
        "The share of the rightly answered examples that the attack breaks.",
        statistics.ratio, list(zip(broken, right, strict=True)), better="lower",
    )  # fmt: skip
    yield Measure(
        f"{part.part}.queries", "Queries an example", group,
        "How often the attack asks the model, for an example that was right.",
        statistics.ratio, list(zip(queries, right, strict=True)), unit="", better=None,
    )  # fmt: skip


def _smoothness(part: Records, probabilities: bool) -> Iterator[Measure]:
    group = "Smoothness"
    what, unit = ("KL", "nats") if probabilities else ("Squared change", "")
    adversarial = part.column(lambda record: record["adversarial"])
    random = part.column(lambda record: record["random"])
    yield Measure(
        "smoothness.adversarial", f"{what}, adversarial", group,
        "How far the prediction moves when embeddings are moved in the worst direction"
        f"{' (KL divergence)' if probabilities else ''}.",
        statistics.mean, [(column,) for column in adversarial], unit, better="lower",
    )  # fmt: skip
    yield Measure(
        "smoothness.random", f"{what}, random", group,
        "The same for a random direction of equal length.",
        statistics.mean, [(column,) for column in random], unit, better="lower",
    )  # fmt: skip
    yield Measure(
        "smoothness.gain", "Gain", group,
        "The first over the second: around 1 the attack is noise, far above 1 it is an attack.",
        statistics.ratio, list(zip(adversarial, random, strict=True)), unit="", better=None,
    )  # fmt: skip


# From measures to numbers.


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


# Curves.


@dataclass(frozen=True)
class _Curve:
    x: Sequence[float]
    checkpoints: Sequence[Columns]
    statistic: Statistic


def _curves(parts: Mapping[str, Records]) -> dict[str, _Curve]:
    curves = {}
    for norm in NORMS:
        if norm in parts and (radii := _radii(parts[norm])):
            columns = [(column,) for column in parts[norm].column(_epsilon)]
            curves[norm] = _Curve(radii, columns, statistics.share_above(radii))
    if "noise" in parts:
        part, clean = parts["noise"], _by_number(parts["clean"])
        for kind, rates in _noises(part).items():
            # One more column in front: without noise.
            columns = [
                tuple(
                    np.array([clean[k][example.number]["correct"] for example in part.examples])
                    if key is None
                    else np.array([record[key]["correct"] for record in records])
                    for key in (None, *rates.values())
                )
                for k, records in enumerate(part.checkpoints)
            ]
            curves[f"noise {kind}"] = _Curve([0.0, *rates], columns, _means)
    return curves


def _means(*columns: Array) -> Array:
    return np.stack([statistics.mean(column) for column in columns])


def _radii(part: Records) -> list[float]:
    """0, then radii from below the smallest that breaks anything to the largest tried."""
    found = [record for records in part.checkpoints for record in records]
    broken = [record["epsilon"] for record in found if record["epsilon"]]
    top = max([*broken, *(record["lower"] for record in found)])
    if top == 0:
        return []
    bottom = min([*broken, top / 10]) / 2
    return [0.0, *(_round(radius) for radius in np.geomspace(bottom, top, _POINTS))]


def _curve(curve: _Curve, spans: Mapping[str, slice], resamples: int, seed: int) -> dict[str, Any]:
    models = {}
    for number, (name, span) in enumerate(spans.items()):
        checkpoints = curve.checkpoints[span]
        low, high = statistics.interval(
            100 * statistics.bootstrap(curve.statistic, checkpoints, resamples, seed, number)
        )
        y = 100 * np.mean([curve.statistic(*columns) for columns in checkpoints], axis=0)
        models[name] = {"y": y.tolist(), "low": low.tolist(), "high": high.tolist()}
    return {"x": list(curve.x), "examples": len(curve.checkpoints[0][0]), "models": models}


def _reliability(clean: Records, spans: Mapping[str, slice]) -> dict[str, Any]:
    """Of all checkpoints of a model together."""
    columns = _calibration(clean)
    return {
        name: statistics.reliability(
            *(np.concatenate(column) for column in zip(*columns[span], strict=True))
        )
        for name, span in spans.items()
    }


def _by_number(part: Records) -> list[dict[int, Record]]:
    """For each checkpoint the record of each example's number."""
    numbers = [example.number for example in part.examples]
    return [dict(zip(numbers, records, strict=True)) for records in part.checkpoints]


# Warnings.


def _warnings(
    parts: Mapping[str, Records], spans: Mapping[str, slice], data: Mapping[str, Any]
) -> Iterator[str]:
    few = [part for part in parts.values() if len(part.examples) < _FEW]
    if few:
        counts = ", ".join(f"{part_name(part.part)} ({len(part.examples)})" for part in few)
        yield f"Measured on fewer than {_FEW} examples, so that intervals are wide: {counts}."
    if len(spans) > 1 and any(span.stop - span.start == 1 for span in spans.values()):
        yield (
            "A model with a single checkpoint: intervals and p-values speak of these checkpoints. "
            "Whether another seed of training would give the same needs several of each model."
        )
    for name, span in spans.items():
        if _has_confidence(data) and data["kind"] != "choices":
            yield from _constant(parts["clean"], name, span)
        for norm in NORMS:
            if norm in parts:
                records = [one for rows in parts[norm].checkpoints[span] for one in rows]
                yield from _masking(f"{name}, {NORMS[norm]} attack", records)
        if "smoothness" in parts:
            records = [one for rows in parts["smoothness"].checkpoints[span] for one in rows]
            yield from _low_gain(name, records)


def _constant(clean: Records, name: str, span: slice) -> Iterator[str]:
    for number, records in enumerate(clean.checkpoints[span], start=1):
        predictions = {record["prediction"] for record in records}
        if len(predictions) == 1 and len(records) > 1:
            yield (
                f"{name}, checkpoint {number}: predicts {predictions.pop()} for every example. "
                "What never changes its answer looks robust, but knows nothing."
            )


# What a sound attack shows, after Athalye et al. (2018), https://arxiv.org/abs/1802.00420,
# section 3.1, and Carlini et al. (2019), https://arxiv.org/abs/1902.06705.
_MASKED = (
    "The gradients may be masked, and the model less robust than it looks "
    "(Athalye et al. 2018; Carlini et al. 2019)."
)


def _masking(where: str, records: Sequence[Record]) -> Iterator[str]:
    tried = [record for record in records if record["epsilon"] != 0]  # not wrong already
    broken = [record for record in tried if record["epsilon"] is not None]
    if not tried:
        return
    unbroken = 1 - len(broken) / len(tried)
    if unbroken:
        yield (
            f"{where}: {unbroken:.1%} of the examples were not broken at any radius up to the "
            f"ceiling, where an attack without bounds should break all. {_MASKED}"
        )
    flat = sum(record["flat"] for record in tried) / len(tried)
    if flat > 0.01:
        yield f"{where}: no usable gradient for {flat:.1%} of the examples. {_MASKED}"
    if not broken:
        return
    hits = sum(record["random"] for record in broken)
    if hits > max(2, 0.1 * len(broken)):
        yield (
            f"{where}: for {hits / len(broken):.1%} of the broken examples one of ten random "
            "perturbations of that size breaks them as well; the attack hardly beats noise. "
            f"{_MASKED}"
        )
    first = sum(record["restart"] == 0 for record in broken) / len(broken)
    if first < 0.8:
        yield (
            f"{where}: only {first:.1%} of what was broken was broken best by the first restart; "
            f"more restarts would find more. {_MASKED}"
        )


def _low_gain(name: str, records: Sequence[Record]) -> Iterator[str]:
    adversarial, random = (sum(one[key] for one in records) for key in ("adversarial", "random"))
    if random > 0 and adversarial < 2 * random:
        yield (
            f"{name}: the worst direction moves predictions only {adversarial / random:.2g} times "
            f"as far as a random one. {_MASKED}"
        )


# Examples.


def _worst_examples(
    parts: Mapping[str, Records], spans: Mapping[str, slice]
) -> list[dict[str, Any]]:
    """The examples that the fewest edits broke, of these those that the model was surest of."""
    clean = _by_number(parts["clean"])
    worst = []
    for part in _attacks(parts):
        for name, span in spans.items():
            found = [
                _example(part, name, example, clean[k][example.number], outcome)
                for k in range(span.start, span.stop)
                for example, outcome in zip(
                    parts[part].examples, parts[part].checkpoints[k], strict=True
                )
                if _was_right(outcome) and not outcome["correct"]
            ]
            found.sort(key=_severity)
            once = {one["number"]: one for one in reversed(found)}  # of several seeds the worst
            worst += sorted(once.values(), key=_severity)[:_WORST]
    return worst


def _severity(one: Mapping[str, Any]) -> tuple[float, ...]:
    """Few edits first; then the surest, or of a regression what moved furthest; then the number."""
    before, after = one["original"], one["attacked"]
    if before["confidence"] is None:
        lost = abs(float(after["prediction"]) - float(before["prediction"]))
    else:
        lost = before["confidence"]
    return one["edits"], -lost, one["number"]


def _example(
    part: str, name: str, example: Example, clean: Record, outcome: Record
) -> dict[str, Any]:
    keys = ("texts", "prediction", "confidence")
    before = {**clean, "texts": list(example.texts)}
    return {
        "number": example.number,
        "attack": part,
        "model": name,
        "answer": example.answer,
        "original": {key: before[key] for key in keys},
        "attacked": {key: outcome[key] for key in keys},
        "edits": outcome["edits"],
        "queries": outcome["queries"],
    }


# Numbers.


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
