"""Tables and figures of a file of results, and of nothing else.

python examples/evidence/analyse.py OUTPUT/results.jsonl -o DIR

Works on incomplete results, too, and says what is missing. Writes DIR/report.md and its figures.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import ledger
import pictures
from cells import GONE, GONE_AT, STUDIES, TASKS, TEXT, resolved
from summary import Difference, Estimate, Line, Read, Results, current, field, measure

from alum_fairseq import cli
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, whole_file
from alum_fairseq.robustness.statistics import adjusted

BASELINE = "plain"
CALIBRATED = "calibrated"
DRAWN = (BASELINE, CALIBRATED, "reference", "random-noise")
_LINES = 4  # more lines cannot be told apart
ABLATIONS = ("dropout-only", "random-noise", "paper", "reference", "plain-longer")
NAMES = {
    "sst2": "SST-2 (accuracy)",
    "sick-e": "SICK entailment (accuracy)",
    "sick-r": "SICK relatedness (Pearson x 100)",
    "cola": "CoLA, out of domain (Matthews x 100)",
    "ag_news": "AG News (accuracy)",
    "policyqa": "PolicyQA (F1 of answers)",
    "wnut17": "WNUT-17 (F1 of entities)",
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
    Column("misspelt", "noise.0.2"),
    Column("greedy", "greedy.accuracy"),
    Column("Linf", "linf.area"),
    Column("L2", "l2.area"),
    Column("divergence", "smoothness.adversarial", 3),
    Column("calibration", "clean.ece"),
)
PRETRAINING = (
    Column("perplexity", "ppl"),
    Column("under attack", "adv_ppl"),
    Column("gain", "gain"),
)
MEANING = """Columns:

- **test metric**: on the whole test split; accuracy, F1, or Matthews or Pearson correlation times
  100.
- **misspelt**: right answers (%) when every fifth word has a typing mistake; **greedy**: when an
  attacker misspells the words that hurt most. Of a regression, right is what is less than half a
  standard deviation off; of a question, an exact match; of a tagged sentence, every tag right.
- **Linf**, **L2**: right answers left (%) when an attacker moves the embeddings, on average over
  radii from 0 to 0.1 root mean squares of the embeddings.
- **divergence** (nats): by how much a perturbation as in training, but an adversarial one, changes
  the model's answer; **calibration**: expected calibration error (%). Of these two less is better.
- **time**, **FLOPs**: of the updates, as a multiple of plain training's; time as measured, FLOPs as
  counted (passes through the encoder)."""

Section = Iterator[str]

_NAMED = 8  # cells named in a line; of more, how many


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    parser = cli.make_parser("analyse.py", __doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results.jsonl of a grid")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for all")
    arguments = parser.parse_args(argv)
    lines = ledger.read(existing_file(arguments.results))
    if not any(map(ledger.is_done, lines)):
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
    yield f"\n{MEANING}"
    others: dict[str, Callable[[Results, Path], Section]] = {
        "tune": tuned,
        "calibrate": calibrated,
        "pretraining": pretrained,
        "encoder": pretrained,
    }
    for study in STUDIES:
        results = Results(current(lines, study))
        if results.lines:
            yield f"\n## {study}\n"
            yield from _missing(study, lines, results)
            yield from others.get(study, compare)(results, folder)


def _what_ran(lines: Sequence[Line]) -> Section:
    done = [line for line in lines if ledger.is_done(line)]
    once = {line["key"]: line for line in done}.values()
    hours = sum(line["seconds"] for line in once) / 3600
    processors = sorted({line["machine"]["gpu"] or line["machine"]["processor"] for line in once})
    yield (
        f"{len(once)} runs, {hours:.1f} hours of one thread each on {', '.join(processors)}; "
        + ", ".join(f"{name} {' or '.join(found)}" for name, found in _versions(done))
        + ".\n"
    )
    yield (
        "Means over seeds with Student's 95% interval. Differences are of pairs: a method and "
        "plain training with the same seed, and so the same training sentences. Both ran on a "
        "GPU, or neither did. p: sign-flip randomisation of these pairs; adjusted: for all rows "
        "of the table (Benjamini-Hochberg)."
    )
    yield from _on_both_devices([line for line in done if line["task"] != TEXT])
    keys = {line["key"] for line in done}
    failed = {
        ledger.name(line) for line in lines if not ledger.is_done(line) and line["key"] not in keys
    }
    if failed:
        yield f"\n**Failed:** {', '.join(sorted(failed))}."


def _on_both_devices(lines: Sequence[Line]) -> Section:
    """By how much the same fine-tuning differs between a GPU and a processor."""
    ran: dict[bool, dict[str, Line]] = {True: {}, False: {}}
    for line in lines:
        ran[bool(line["machine"]["gpu"])][line["key"]] = line
    told = []
    for column in (METRIC, *ROBUSTNESS[1:4]):
        pairs = [
            (measure(column.key)(line), measure(column.key)(ran[False][key]))
            for key, line in ran[True].items()
            if key in ran[False]
        ]
        found = [ours - theirs for ours, theirs in pairs if None not in (ours, theirs)]
        if found:
            size = sum(map(abs, found)) / len(found)
            mean = sum(found) / len(found)
            told.append(f"{column.title} by {size:.1f} (GPU minus processor {mean:+.1f})")
    if told:
        count = len(ran[True].keys() & ran[False].keys())
        differ = ", ".join(told)
        yield f"\n{count} runs were made on both a GPU and a processor, and differ in {differ}."


def _versions(lines: Sequence[Line]) -> Iterator[tuple[str, list[str]]]:
    """Of each piece of software, those that were used."""
    for name in sorted({name for line in lines for name in line["versions"]}):
        yield name, sorted({line["versions"][name] for line in lines if name in line["versions"]})


def _missing(study: str, lines: Sequence[Line], results: Results) -> Section:
    """What there is no result of, and which results are left out."""
    found = {ledger.name(line) for line in results.lines}
    outdated = {
        ledger.name(line) for line in lines if line["study"] == study and ledger.is_done(line)
    } - found
    if outdated:
        yield (
            "*Left out, since their method was run with other settings after them: "
            f"{_few(sorted(outdated))}.*\n"
        )
    gone = [method for method in results.methods if method in GONE]
    if gone:
        yield f"*Run at {GONE_AT}, with options that are gone: {', '.join(gone)}.*\n"
    expected = sorted(STUDIES[study](), key=lambda cell: cell.study_order)
    missing = [cell.name for cell in expected if cell.name not in found]
    if missing:
        yield f"*Incomplete: {len(missing)} of {len(expected)} cells: {_few(missing)}.*\n"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# ---------------------------------------------------------------------------- methods side by side


def compare(results: Results, folder: Path) -> Section:
    """Every method against plain training: metric, robustness, cost."""
    study = results.lines[0]["study"]
    complete = _complete(results)
    if len(complete.tasks) > 1:
        yield f"### Mean of the tasks: {', '.join(complete.tasks)}\n"
        yield from _not_in(results, complete)
        yield from _comparison(complete)
        yield from _task_by_task(complete)
    for task in results.tasks:
        yield f"### {NAMES.get(task, task)}\n"
        yield from _comparison(results.only([task]))
    yield from side_by_side(results)
    if study == "finetuning":
        yield from targets(results)
    yield from _figures(results, complete, study, folder)


def _complete(results: Results) -> Results:
    """Tasks, and methods that were run on each of them: as many of both as there are.

    The tasks are those of plain training, if there is any.
    """
    tasks = [task for task in results.tasks if results.of(BASELINE, task)] or results.tasks
    choices = [
        results.only(some, [m for m in results.methods if all(results.of(m, t) for t in some)])
        for count in range(1, len(tasks) + 1)
        for some in combinations(tasks, count)
    ]
    return max(choices, key=lambda one: (len(one.tasks) * len(one.methods), len(one.tasks)))


def _shared(results: Results, method: str, other: str) -> Results:
    """Two methods, on the tasks that both were run on."""
    tasks = [task for task in results.tasks if results.of(method, task) and results.of(other, task)]
    return results.only(tasks, [method, other])


def _not_in(results: Results, complete: Results) -> Section:
    absent = [method for method in results.methods if method not in complete.methods]
    if absent:
        yield f"*Left out, since not run on {', '.join(complete.tasks)}: {_few(absent)}.*\n"


def _ordered(methods: Sequence[str]) -> list[str]:
    """Plain first, then in the order that they were run in."""
    return sorted(methods, key=lambda method: method != BASELINE)


def _comparison(results: Results) -> Section:
    """A table of metric and cost, and one of robustness."""
    methods = _ordered(results.methods)
    differences = {
        method: results.difference(method, BASELINE, measure("metric"))
        for method in methods
        if method != BASELINE
    }
    ps = dict(zip(differences, adjusted([one.p for one in differences.values()]), strict=True))
    rows = []
    for method in methods:
        found = results.mean(method, measure("metric"))
        row = [method, str(found.count), shown(found, METRIC.digits)]
        if method in differences:
            difference = differences[method]
            row += [signed(difference.estimate, 2), _higher(results, method, measure("metric"))]
            row += [p_value(difference.p), p_value(ps[method])]
        else:
            row += ["", "", "", ""]
        costs = (cost_ratio(results, method), flops(results, method))
        rows.append([*row, *(number(cost, 2) for cost in costs)])
    heads = ["method", "runs", METRIC.title, "minus plain", "higher in", "p", "p adjusted"]
    yield from table([*heads, "time", "FLOPs"], rows)
    columns = [column for column in ROBUSTNESS if _known(results, column)]
    if columns:
        rows = [[method, *_means(results, method, columns)] for method in methods]
        yield from table(["method", *(column.title for column in columns)], rows)
        yield from _gains(results, list(differences), columns)
    if CALIBRATED in differences:
        others = [method for method in differences if method != CALIBRATED]
        yield from _gains(results, others, [METRIC, *columns], CALIBRATED)


def _task_by_task(results: Results) -> Section:
    """What methods add to plain training's metric on each task, and in how many pairs of runs."""
    read, rows = measure("metric"), []
    for method in _ordered(results.methods):
        if method == BASELINE:
            continue
        row = [method]
        for task in results.tasks:
            one = results.only([task])
            gain = one.difference(method, BASELINE, read).estimate
            row.append(f"{gain.value:+.2f}, {_higher(one, method, read)}" if gain.count else "-")
        rows.append(row)
    if rows:
        heads = ["test metric minus plain", *(NAMES.get(task, task) for task in results.tasks)]
        yield from table(heads, rows)


def _higher(results: Results, method: str, read: Read) -> str:
    """In how many pairs of runs a method is above plain training."""
    pairs = [pair for task in results.tasks for pair in results.pairs(method, BASELINE, task, read)]
    return f"{sum(ours > plain for ours, plain in pairs)} of {len(pairs)}"


def _gains(
    results: Results, methods: Sequence[str], columns: Sequence[Column], baseline: str = BASELINE
) -> Section:
    """What methods have more than another, over the tasks and seeds that both were run with."""
    found = {
        method: [results.difference(method, baseline, measure(one.key)) for one in columns]
        for method in methods
    }
    rows = [
        [method, *(signed(one.estimate, c.digits) for one, c in zip(ones, columns, strict=True))]
        for method, ones in found.items()
        if any(one.estimate.count for one in ones)
    ]
    if rows:
        yield from table([f"minus {baseline}", *(column.title for column in columns)], rows)


def _means(results: Results, method: str, columns: Sequence[Column]) -> list[str]:
    return [shown(results.mean(method, measure(one.key)), one.digits) for one in columns]


def _known(results: Results, column: Column) -> bool:
    read = measure(column.key)
    return any(read(line) is not None for line in results.lines)


def flops(results: Results, method: str) -> float:
    """FLOPs of the updates, over plain training's, as counted: the same on every machine."""
    return results.mean(method, lambda line: line["flops_factor"] * line["factor"]).value


def cost_ratio(results: Results, method: str) -> float:
    """Time of the updates, over plain training's with the same task and seed; NaN if unknown.

    Of those alone that ran on the same kind of machine.
    """
    pairs = [
        (_time_of_updates(ours), _time_of_updates(plain))
        for task in results.tasks
        for ours, plain in results.line_pairs(method, BASELINE, task)
        if ours["machine"] == plain["machine"]
    ]
    ratios = [ours / plain for ours, plain in pairs if ours is not None and plain]
    return sum(ratios) / len(ratios) if ratios else math.nan


def _time_of_updates(line: Line) -> float | None:
    """Seconds of the updates alone; on a processor, those that it worked."""
    return line.get("update_seconds" if line["machine"]["gpu"] else "update_cpu_seconds")


def side_by_side(results: Results) -> Section:
    """Plain training and the preset on all tasks that both ran on, measure by measure."""
    both = _shared(results, CALIBRATED, BASELINE)
    if len(both.tasks) < 2:
        return
    yield f"### {CALIBRATED} and {BASELINE}, mean of the tasks: {', '.join(both.tasks)}\n"
    rows = []
    for column in (METRIC, *ROBUSTNESS):
        # A regression's divergence has another unit than a classification's.
        if column.key == "smoothness.adversarial" or not _known(both, column):
            continue
        read = measure(column.key)
        difference = both.difference(CALIBRATED, BASELINE, read)
        rows.append([
            column.title,
            *(number(both.mean(m, read).value, column.digits) for m in (BASELINE, CALIBRATED)),
            signed(difference.estimate, 2), p_value(difference.p),
            _higher(both, CALIBRATED, read),
        ])  # fmt: skip
    yield from table(["measure", BASELINE, CALIBRATED, "difference", "p", "higher in"], rows)


def targets(results: Results) -> Section:
    """What the project aims for, and whether it is met: each on the tasks that both ran on."""
    if not {BASELINE, CALIBRATED} <= set(results.methods):
        return
    yield "### Targets\n"
    rows = []

    def add(what: str, on: Results, difference: Difference, met: bool | None) -> None:
        verdict = {True: "met", False: "missed", None: "not known yet"}[met]
        tasks = ", ".join(on.tasks)
        rows.append([what, tasks, signed(difference.estimate, 2), p_value(difference.p), verdict])

    both = _shared(results, CALIBRATED, BASELINE)
    metric = both.difference(CALIBRATED, BASELINE, measure("metric"))
    significant = metric.estimate.value > 0 and metric.p < 0.05
    if 2 / 2**metric.estimate.count >= 0.05:  # no result could be
        significant = None
    add("test metric above plain, p < 0.05", both, metric, significant)
    for column in ROBUSTNESS[:2]:
        difference = both.difference(CALIBRATED, BASELINE, measure(column.key))
        known = difference.estimate.count > 0
        add(f"{column.title}: 5 points above plain", both, difference,
            difference.estimate.value >= 5 if known else None)  # fmt: skip
    for column in ROBUSTNESS[2:4]:
        difference = both.difference(CALIBRATED, BASELINE, measure(column.key))
        ours, plain = (both.mean(m, measure(column.key)).value for m in (CALIBRATED, BASELINE))
        ratio = ours / plain if plain else math.nan
        add(f"{column.title}: 1.5 times plain's (it is {number(ratio, 2)} times)", both, difference,
            None if math.isnan(ratio) else ratio >= 1.5)  # fmt: skip
    for method in ABLATIONS:
        if method in results.methods:
            pair = _shared(results, CALIBRATED, method)
            difference = pair.difference(CALIBRATED, method, measure("metric"))
            known = difference.estimate.count > 0
            add(f"test metric at least that of {method}", pair, difference,
                difference.estimate.value >= 0 if known else None)  # fmt: skip
    yield from table(["target", "tasks", "difference", "p", ""], rows)


def _figures(results: Results, complete: Results, study: str, folder: Path) -> Section:
    yield from _cost_figure(
        complete, folder, f"{study}-cost", f"mean of {', '.join(complete.tasks)}"
    )
    for task in results.tasks:
        one = results.only([task])
        if set(one.methods) - set(complete.methods):  # a mean shows none that a task lacks
            yield from _cost_figure(one, folder, f"{study}-cost-{task}", NAMES.get(task, task))
    known = [method for method in DRAWN if method in results.methods]
    methods = known if len(known) > 1 else _ordered(results.methods)[:_LINES]
    for task in results.tasks:
        name, key = NAMES.get(task, task), f"valid_{TASKS[task].metric}"
        attacks = [
            (f"{name.split(' (')[0]}, {norm}", pictures.over_radii(results, methods, task, norm))
            for norm in ("linf", "l2")
            if any(norm in line["radii"] for line in results.only([task]).lines)
        ]
        curves = (
            "Learning curves",
            pictures.learning(results, {name: name for name in methods}, task, key),
        )
        yield from _figure(
            folder, f"{study}-{task}", [*attacks, curves],
            f"{name}: {'right answers left under attack, and ' if attacks else ''}learning "
            "curves; bands: from the lowest seed to the highest.",
        )  # fmt: skip


def _cost_figure(results: Results, folder: Path, name: str, of_what: str) -> Section:
    """What the methods gain over plain training, against their FLOPs; none without plain."""
    costs = {method: flops(results, method) for method in results.methods if method != BASELINE}
    constant = {line["method"] for line in results.lines if line["test"].get("clean.mcc") == 0}
    if constant & costs.keys():
        names = ", ".join(sorted(constant & costs.keys()))
        yield f"*Not drawn, since a run of it gives one answer to every example: {names}.*\n"
        costs = {method: cost for method, cost in costs.items() if method not in constant}
    panels = []
    for column in (METRIC, ROBUSTNESS[2], ROBUSTNESS[1]):
        gains = {m: results.difference(m, BASELINE, measure(column.key)) for m in costs}
        gains = {method: gain for method, gain in gains.items() if gain.estimate.count}
        if gains:
            panel = pictures.against_cost(costs, gains, column.title, "points")
            panels.append((column.title, panel))
    if panels:
        yield from _figure(
            folder, name, panels,
            f"What each method costs (right), and what it brings (up); {of_what}.",
        )  # fmt: skip


# --------------------------------------------------------------------------------------- the others


def tuned(results: Results, folder: Path) -> Section:
    """The recipe of plain training: the validation metric of each, the best marked."""
    complete = _complete(results)
    yield from _not_in(results, complete)
    found = {method: complete.mean(method, field("dev")) for method in complete.methods}
    best = max(found, key=lambda method: found[method].value)
    rows = []
    for method, estimate in found.items():
        of_tasks = [
            shown(complete.only([task]).mean(method, field("dev")), 1) for task in complete.tasks
        ]
        name = f"**{method}**" if method == best else method
        rows.append([name, str(estimate.count), shown(estimate, 1), *of_tasks])
    heads = ["recipe", "runs", "validation metric", *(NAMES.get(t, t) for t in complete.tasks)]
    yield from table(heads, rows)


def calibrated(results: Results, folder: Path) -> Section:
    """A table a factor; the preset's value is marked."""
    tasks = [task for task in results.tasks if task != TEXT]
    parts = {
        "Fine-tuning": (tasks, (METRIC, *ROBUSTNESS)),
        "Pre-training": ([TEXT] if TEXT in results.tasks else [], PRETRAINING),
    }
    for name, (some, columns) in parts.items():
        if some:
            yield from _calibrated(results.only(some), columns, name, folder)


def _calibrated(results: Results, columns: Sequence[Column], name: str, folder: Path) -> Section:
    columns = [column for column in columns if _known(results, column)]
    factors: dict[str, dict[str, str]] = {}  # factor, method, its value of the factor
    for method in results.methods:
        factor, colon, value = method.partition(": ")
        if colon:
            factors.setdefault(factor, {})[method] = value
    for factor, values in factors.items():
        # The preset's own value is in every factor: alone on a task, it has nothing beside it.
        tasks = [t for t in results.tasks if sum(bool(results.of(m, t)) for m in values) > 1]
        if not tasks:
            continue
        all_of_it = results.only(tasks, [BASELINE, *values])
        some = _complete(all_of_it)
        values = {method: value for method, value in values.items() if method in some.methods}
        yield f"### {name}, {', '.join(some.tasks)}: {factor}\n"
        yield from _not_in(all_of_it, some)
        yield from _calibration_table(some, factor, columns)
        if len(all_of_it.tasks) > 1:
            for task in all_of_it.tasks:
                yield f"{NAMES.get(task, task)}:\n"
                yield from _calibration_table(all_of_it.only([task]), factor, columns)
        ladders = []
        for column in columns[:3] if columns[0] != METRIC else (METRIC, *ROBUSTNESS[:3:2]):
            read = measure(column.key)
            means = {value: some.mean(method, read) for method, value in values.items()}
            plain = some.mean(BASELINE, read)
            ladders.append((column.title, pictures.ladder(means, plain)))
        yield from _figure(
            folder, f"calibrate-{name}-{factor}", ladders, f"{name}: {factor}.",
            height=pictures.ladder_height(len(values)), rows=True,
        )  # fmt: skip


def _calibration_table(results: Results, factor: str, columns: Sequence[Column]) -> Section:
    """A row a value, after plain training's."""
    rows = []
    for method in _ordered(results.methods):
        lines = [line for line in results.lines if line["method"] == method]
        value, found = method.removeprefix(f"{factor}: "), _means(results, method, columns)
        difference = results.difference(method, BASELINE, measure(columns[0].key)).estimate
        rows.append([
            f"**{value}** (preset)" if _is_preset(lines[-1]) else value, str(len(lines)), found[0],
            "" if method == BASELINE else signed(difference, 2), *found[1:],
            number(cost_ratio(results, method), 2),
        ])  # fmt: skip
    titles = [column.title for column in columns]
    yield from table([factor, "runs", titles[0], "minus plain", *titles[1:], "time"], rows)


def _is_preset(line: Line) -> bool:
    """Whether all of its options are those that the preset has now."""
    return line["resolved"] == resolved({"alum-preset": CALIBRATED}, line["task"] == TEXT)


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
        rest = [method.partition(" ")[2] for method in text.methods]
        panels = []
        for kind in dict.fromkeys(map(_kind, text.methods)):
            methods = {name: f"{kind} {name}" for name in rest}
            panels.append((kind, pictures.learning(text, methods, TEXT, "valid_ppl")))
        name = text.lines[0]["study"]
        yield from _figure(folder, name, panels, "Perplexity while pre-training.")
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
        yield from table(heads, rows)
        yield from _pretrainings_compared(some, columns[:4])


def _kind(method: str) -> str:
    """Whether a pre-training is one from scratch or continued."""
    return method.split()[0]


def _pretrainings_compared(results: Results, columns: Sequence[Column]) -> Section:
    """Every ALUM pre-training minus every plain one of its kind, after fine-tuning."""
    rows = []
    for ours in results.methods:
        for theirs in results.methods:
            if "ALUM" in ours and "ALUM" not in theirs and _kind(ours) == _kind(theirs):
                found = [results.difference(ours, theirs, measure(one.key)) for one in columns]
                cells = [
                    f"{signed(one.estimate, one_column.digits)}, p {p_value(one.p)}"
                    for one, one_column in zip(found, columns, strict=True)
                ]
                rows.append([f"{ours} - {theirs}", *cells])
    if rows:
        yield from table(["difference", *(column.title for column in columns)], rows)


# ------------------------------------------------------------------------------------------ wording


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Section:
    """A table in Markdown."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _figure(
    folder: Path, name: str, panels: Sequence[tuple[str, pictures.Panel]], caption: str, **how: Any
) -> Section:
    """Draw a figure; how: see :func:`pictures.draw`."""
    file = re.sub(r"[^a-z0-9]+", "-", name.lower()) + ".png"
    pictures.draw(folder / file, panels, **how)
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
