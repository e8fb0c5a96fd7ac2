"""Tables and figures of a file of results, and of nothing else.

python examples/evidence/analyse.py OUTPUT/results.jsonl -o DIR

Works on incomplete results, too, and says what is missing. Writes DIR/report.md and its figures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ledger
import pictures
from summary import Difference, Estimate, Line, Results, field, measure

from alum_fairseq import cli
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, whole_file
from alum_fairseq.robustness.statistics import adjusted

BASELINE = "plain"
CALIBRATED = "calibrated"
TEXT = "text"
ABLATIONS = ("dropout-only", "random-noise", "paper", "reference", "plain-longer")
NAMES = {
    "sst2": "SST-2 (accuracy)",
    "sick-e": "SICK entailment (accuracy)",
    "sick-r": "SICK relatedness (Pearson x 100)",
    "cola": "CoLA, out of domain (Matthews x 100)",
}


@dataclass(frozen=True)
class Column:
    """A measure in a table.

    Attributes:
        title: of the column.
        key: of the measure; ``metric`` is the task's own.
        digits: after the point.
    """

    title: str
    key: str
    digits: int = 1


METRIC = Column("test metric", "metric")
ROBUSTNESS = (
    Column("20% of words misspelt (%)", "noise.0.2"),
    Column("greedy misspellings (%)", "greedy.accuracy"),
    Column("Linf: area to 0.1 (%)", "linf.area"),
    Column("L2: area to 0.1 (%)", "l2.area"),
    Column("divergence, adversarial (nats)", "smoothness.adversarial", 3),
    Column("calibration error (%)", "clean.ece"),
)

Section = Iterator[str]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    parser = cli.make_parser("analyse.py", __doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results.jsonl of a grid")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for all")
    arguments = parser.parse_args(argv)
    lines = ledger.read(existing_file(arguments.results))
    if not any(line.get("status") == ledger.DONE for line in lines):
        raise UsageError(f"{arguments.results} has no result of a cell that is done")
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(report(lines, arguments.output)) + "\n"
    with whole_file(arguments.output / "report.md") as aside:
        aside.write_text(text, encoding="utf-8")
    print(text)


def report(lines: Sequence[Line], folder: Path) -> Section:
    """The whole report in Markdown; figures are put into the folder."""
    yield "# Results\n"
    yield from _what_ran(lines)
    sections: dict[str, Callable[[Results, Path], Section]] = {
        "finetuning": compare,
        "full": compare,
        "tune": tuned,
        "calibrate": calibrated,
        "pretraining": pretrained,
    }
    for study, section in sections.items():
        results = Results(lines, study)
        if results.lines:
            yield f"\n## {study}\n"
            yield from _missing(results)
            yield from section(results, folder)


def _what_ran(lines: Sequence[Line]) -> Section:
    done = [line for line in lines if line.get("status") == ledger.DONE]
    once = {line["key"]: line for line in done}.values()
    hours = sum(line["seconds"] for line in once) / 3600
    processors = sorted({line["machine"]["gpu"] or line["machine"]["processor"] for line in once})
    yield (
        f"{len(once)} runs, {hours:.1f} hours of one thread each on {', '.join(processors)}; "
        + ", ".join(f"{name} {number}" for name, number in sorted(done[-1]["versions"].items()))
        + ".\n"
    )
    yield (
        "Means over seeds with Student's 95% interval. Differences are paired: a method and plain "
        "training of the same seed share the training sentences. p: sign-flip randomisation of "
        "these pairs; adjusted: for all rows of the table (Benjamini-Hochberg)."
    )
    keys = {line["key"] for line in done}
    failed = {
        "/".join(map(str, (line["study"], line["task"], line["method"], line["seed"])))
        for line in lines
        if line.get("status") == ledger.FAILED and line["key"] not in keys
    }
    if failed:
        yield f"\n**Failed:** {', '.join(sorted(failed))}."


def _missing(results: Results) -> Section:
    missing = results.missing()
    if missing:
        shown = ", ".join("/".join(map(str, cell)) for cell in missing[:12])
        more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
        yield f"*Incomplete: {len(missing)} cells are missing: {shown}{more}.*\n"


# ---------------------------------------------------------------------------- methods side by side


def compare(results: Results, folder: Path) -> Section:
    """Every method against plain training: metric, robustness, cost."""
    study = results.lines[0]["study"]
    methods = _ordered(results.methods)
    if len(results.tasks) > 1:
        yield "### Mean of the tasks\n"
        complete = [task for task in results.tasks if _has_all(results, task, methods)]
        if complete and len(complete) < len(results.tasks):
            yield f"*Over {', '.join(complete)}, which all methods were run on.*\n"
        together = results.only(complete) if complete else results
        yield from _comparison(together, methods)
    for task in results.tasks:
        yield f"### {NAMES.get(task, task)}\n"
        yield from _comparison(results.only([task]), methods)
    if study == "finetuning":
        yield from targets(results)
    yield from _figures(results, methods, study, folder)


def _has_all(results: Results, task: str, methods: Sequence[str]) -> bool:
    return all(results.values(method, task, field("dev")) for method in methods)


def _ordered(methods: Sequence[str]) -> list[str]:
    """Plain first, then in the order that they were run in."""
    return sorted(methods, key=lambda method: method != BASELINE)


def _comparison(results: Results, methods: Sequence[str]) -> Section:
    methods = [method for method in methods if method in results.methods]
    differences = {
        method: results.difference(method, BASELINE, measure("metric"))
        for method in methods
        if method != BASELINE
    }
    ps = dict(zip(differences, adjusted([one.p for one in differences.values()]), strict=True))
    columns = [column for column in ROBUSTNESS if _known(results, column)]
    heads = ["method", "runs", METRIC.title, "minus plain", "p", "p adjusted"]
    rows = []
    for method in methods:
        found = results.mean(method, measure("metric"))
        row = [method, str(found.count), shown(found, METRIC.digits)]
        if method in differences:
            difference = differences[method]
            row += [signed(difference.estimate, 2), p_value(difference.p), p_value(ps[method])]
        else:
            row += ["", "", ""]
        row += [
            shown(results.mean(method, measure(column.key)), column.digits) for column in columns
        ]
        cost = cost_ratio(results, method)
        flops = results.mean(method, lambda line: line["flops_factor"] * line["factor"]).value
        row += [number(cost, 2), number(flops, 2)]
        rows.append(row)
    heads += [column.title for column in columns] + ["CPU time", "FLOPs"]
    yield from table(heads, rows)


def _known(results: Results, column: Column) -> bool:
    read = measure(column.key)
    return any(read(line) is not None for line in results.lines)


def cost_ratio(results: Results, method: str) -> float:
    """CPU time of training, over that of plain training with the same task and seed."""
    ratios = []
    for task in results.tasks:
        ours = results.values(method, task, field("train_cpu_seconds"))
        plain = results.values(BASELINE, task, field("train_cpu_seconds"))
        ratios += [ours[seed] / plain[seed] for seed in ours if plain.get(seed)]
    return sum(ratios) / len(ratios) if ratios else math.nan


def targets(results: Results) -> Section:
    """What the project aims for, and whether it is met."""
    if not {BASELINE, CALIBRATED} <= set(results.methods):
        return
    yield "### Targets\n"
    rows = []

    def add(what: str, difference: Difference, met: bool | None) -> None:
        verdict = {True: "met", False: "missed", None: "not known yet"}[met]
        rows.append([what, signed(difference.estimate, 2), p_value(difference.p), verdict])

    metric = results.difference(CALIBRATED, BASELINE, measure("metric"))
    significant = None if math.isnan(metric.p) else metric.estimate.value > 0 and metric.p < 0.05
    add("test metric above plain, p < 0.05", metric, significant)
    for column in ROBUSTNESS[:2]:
        difference = results.difference(CALIBRATED, BASELINE, measure(column.key))
        known = difference.estimate.count > 0
        add(f"{column.title}: 5 points above plain", difference,
            difference.estimate.value >= 5 if known else None)  # fmt: skip
    for column in ROBUSTNESS[2:4]:
        difference = results.difference(CALIBRATED, BASELINE, measure(column.key))
        ours, plain = (results.mean(m, measure(column.key)).value for m in (CALIBRATED, BASELINE))
        ratio = ours / plain if plain else math.nan
        add(f"{column.title}: 1.5 times plain's (it is {number(ratio, 2)} times)", difference,
            None if math.isnan(ratio) else ratio >= 1.5)  # fmt: skip
    for method in ABLATIONS:
        if method in results.methods:
            difference = results.difference(CALIBRATED, method, measure("metric"))
            known = difference.estimate.count > 0
            add(f"test metric at least that of {method}", difference,
                difference.estimate.value >= 0 if known else None)  # fmt: skip
    yield from table(["target", "difference", "p", ""], rows)


def _figures(results: Results, methods: Sequence[str], study: str, folder: Path) -> Section:
    others = [method for method in methods if method != BASELINE]
    if BASELINE not in methods or not others:
        return
    costs = {method: cost_ratio(results, method) for method in others}
    others = [method for method in others if math.isfinite(costs[method])]
    panels = []
    for column, unit in ((METRIC, "points"), (ROBUSTNESS[2], "points"), (ROBUSTNESS[1], "points")):
        gains = {
            method: results.difference(method, BASELINE, measure(column.key)) for method in others
        }
        gains = {method: gain for method, gain in gains.items() if gain.estimate.count}
        if gains:
            title = column.title.removesuffix(" (%)")
            panels.append((title, pictures.against_cost(costs, gains, title, unit)))
    if panels:
        yield from _figure(folder, f"{study}-cost", panels,
                           "What each method costs (right), and what it brings (up).")  # fmt: skip
    few = Results([], "")
    for task in results.tasks:
        few = results.only([task])
        few.methods = [
            m for m in (BASELINE, CALIBRATED, "reference", "random-noise") if m in methods
        ]
        yield from _figure(
            folder,
            f"{study}-{task}",
            [
                *((f"{NAMES.get(task, task)}, {norm}", pictures.over_radii(few, task, norm))
                  for norm in ("linf", "l2")),
                ("Learning curves", pictures.learning(few, task, _curve_key(few))),
            ],
            f"{NAMES.get(task, task)}: right answers left under attack, and learning curves; "
            "bands: from the lowest seed to the highest.",
        )  # fmt: skip


def _curve_key(results: Results) -> str:
    """What validation logged of the metric that chooses the checkpoint."""
    logged = results.lines[0]["curve"][0]
    known = ("valid_mcc", "valid_pearson", "valid_accuracy", "valid_ppl")
    return next((name for name in known if name in logged), "valid_loss")


# --------------------------------------------------------------------------------------- the others


def tuned(results: Results, folder: Path) -> Section:
    """The recipe of plain training: the validation metric of each, the best marked."""
    found = {method: results.mean(method, field("dev")) for method in results.methods}
    best = max(found, key=lambda method: found[method].value)
    rows = []
    for method, estimate in found.items():
        of_tasks = [
            shown(results.only([task]).mean(method, field("dev")), 1) for task in results.tasks
        ]
        name = f"**{method}**" if method == best else method
        rows.append([name, str(estimate.count), shown(estimate, 1), *of_tasks])
    heads = ["recipe", "runs", "validation metric", *(NAMES.get(t, t) for t in results.tasks)]
    yield from table(heads, rows)


def calibrated(results: Results, folder: Path) -> Section:
    """A table a factor; the preset's value is marked."""
    chosen = _preset_key(results)
    for name, tasks, columns in (
        ("Fine-tuning", [task for task in results.tasks if task != TEXT], (METRIC, *ROBUSTNESS)),
        (
            "Pre-training, continued",
            [TEXT],
            (
                Column("perplexity", "ppl"),
                Column("under attack", "adv_ppl"),
                Column("gain", "gain"),
            ),
        ),
    ):
        some = results.only(tasks)
        if not some.lines:
            continue
        columns = [column for column in columns if _known(some, column)]
        factors: dict[str, list[str]] = {}
        for method in some.methods:
            if ": " in method:
                factors.setdefault(method.split(": ")[0], []).append(method)
        for factor, methods in factors.items():
            yield f"### {name}: {factor}\n"
            rows = [
                _calibration_row(some, method, columns, chosen)
                for method in ([BASELINE] if BASELINE in some.methods else []) + methods
            ]
            heads = [factor, "runs", *(column.title for column in columns), "minus plain", "p"]
            yield from table([*heads, "CPU time"], rows)
            ladders = [
                (column.title, pictures.ladder(
                    {m.split(": ")[-1]: some.mean(m, measure(column.key)) for m in methods},
                    column.title,
                ))
                for column in columns[:3]
            ]  # fmt: skip
            stem = f"calibrate-{name.split(',')[0].lower()}-{factor}"
            yield from _figure(folder, stem, ladders, f"{name}: {factor}.")


def _calibration_row(
    results: Results, method: str, columns: Sequence[Column], chosen: Mapping[str, set[str]]
) -> list[str]:
    tasks = [task for task in results.tasks if results.values(method, task, field("seconds"))]
    is_preset = any(
        line["key"] in chosen.get(line["task"], ())
        for line in results.lines
        if line["method"] == method
    )
    value = method.split(": ")[-1]
    first = measure(columns[0].key)
    row = [f"**{value}** (preset)" if is_preset else value]
    row.append(str(sum(len(results.values(method, task, first)) for task in tasks)))
    row += [shown(results.mean(method, measure(column.key)), column.digits) for column in columns]
    difference = results.difference(method, BASELINE, first)
    plain = method == BASELINE
    row += ["" if plain else signed(difference.estimate, 2), "" if plain else p_value(difference.p)]
    return [*row, number(cost_ratio(results, method), 2)]


def _preset_key(results: Results) -> dict[str, set[str]]:
    """The keys of the cells that have all of the preset's values: those that most factors share."""
    found: dict[str, set[str]] = {}
    for task in results.tasks:
        factors: dict[str, set[str]] = {}
        for line in results.lines:
            if line["task"] == task and ": " in line["method"]:
                factors.setdefault(line["key"], set()).add(line["method"].split(": ")[0])
        most = max(map(len, factors.values()), default=0)
        found[task] = {key for key, names in factors.items() if len(names) == most > 1}
    return found


def pretrained(results: Results, folder: Path) -> Section:
    """Perplexity clean and under attack; then fine-tuning from each model."""
    text = results.only([TEXT])
    if text.lines:
        yield "### Perplexity\n"
        rows = []
        for line in text.lines:
            test = line["test"]
            rows.append([
                line["method"], str(line["updates"]), number(test["ppl"], 1),
                number(test["adv_ppl"], 1), number(test["adv_ppl"] / test["ppl"], 2),
                number(test["gain"], 1), number(line["train_cpu_seconds"] / 60, 1),
            ])  # fmt: skip
        heads = ["pre-training", "updates", "perplexity", "under attack", "ratio", "gain"]
        yield from table([*heads, "CPU minutes"], rows)
        panel = pictures.learning(text, TEXT, "valid_ppl")
        yield from _figure(folder, "pretraining", [("Pre-training", panel)], "Learning curves.")
    tuned_on = [task for task in results.tasks if task != TEXT]
    for task in tuned_on:
        yield f"### Fine-tuned (plainly) on {NAMES.get(task, task)}\n"
        some = results.only([task])
        columns = [METRIC, *(column for column in ROBUSTNESS if _known(some, column))]
        heads = ["pre-training", "runs", *(column.title for column in columns)]
        rows = [
            [
                method,
                str(some.mean(method, measure("metric")).count),
                *(shown(some.mean(method, measure(c.key)), c.digits) for c in columns),
            ]
            for method in some.methods
        ]
        pairs = [
            (name, base)
            for base in ("scratch plain", "continued plain", "continued plain, equal compute")
            for name in some.methods
            if base in some.methods and name != base and "ALUM" in name
        ]
        yield from table(heads, rows)
        compared = []
        for name, base in pairs:
            difference = some.difference(name, base, measure("metric"))
            if difference.estimate.count:
                compared.append(
                    [f"{name} - {base}", signed(difference.estimate, 2), p_value(difference.p)]
                )
        if compared:
            yield from table(["comparison", "test metric", "p"], compared)


# ------------------------------------------------------------------------------------------ wording


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Section:
    """A table in Markdown."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _figure(
    folder: Path, name: str, panels: Sequence[tuple[str, Callable[[Any], None]]], caption: str
) -> Section:
    file = f"{name.replace(' ', '-')}.png"
    pictures.draw(folder / file, panels)
    yield f"![{caption}]({file})\n"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def shown(estimate: Estimate, digits: int) -> str:
    """A mean with half the width of its interval."""
    text = number(estimate.value, digits)
    if math.isfinite(estimate.low):
        text += f" ± {(estimate.high - estimate.low) / 2:.{digits}f}"
    return text


def signed(estimate: Estimate, digits: int) -> str:
    """A difference with its interval."""
    if not math.isfinite(estimate.value):
        return "-"
    text = f"{estimate.value:+.{digits}f}"
    if math.isfinite(estimate.low):
        text += f" ({estimate.low:+.{digits}f}..{estimate.high:+.{digits}f})"
    return text


def p_value(p: float) -> str:
    """A p-value, or a dash."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    sys.exit(main())
