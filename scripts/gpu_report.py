"""What a GPU says of alum_fairseq: tests, cost and learning, as JSON and as a page to read.

    bash scripts/gpu.sh

which sets up what it needs and runs this. Its steps:

- ``cost``: ``scripts/benchmark.py`` at RoBERTa-base, 8 x 512 tokens in every precision;
- ``training``: ``fairseq-train``, stock and with ALUM: pre-training from scratch in fp16, then
  fine-tuning of what came of it in bf16, on prose from the docstrings of installed packages (which
  package is this paragraph from?); and ``alum-robustness`` of the two fine-tuned models;
- ``tests``: those that are marked ``gpu``;
- ``large``: the benchmark with a batch that keeps the GPU busy, in bf16.

A step that fails is named on the page, and in the exit status. Where the time on a card is short,
``--steps`` takes one after the other: the page keeps what it had of the same card.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark import MODES, machine

from alum_fairseq import cli
from alum_fairseq.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "common"))

from docstrings import classification, deduplicate, documents, harvest  # noqa: E402
from training_log import logged  # noqa: E402

Report = dict[str, Any]

STEPS = ("cost", "training", "tests", "large")


@dataclass(frozen=True)
class Effort:
    """How much is done; of the benchmarks, the options by the name of the batch."""

    costs: dict[str, tuple[Any, ...]]
    large: dict[str, tuple[Any, ...]]
    megabytes: float
    layers: int
    width: int
    updates: int
    per_class: int
    times_chance: float


_COSTS = ("exact", "low memory", "a quarter of the batch", "K=3")
_METHODS = ("vat", "r3f", "smart", "fgm", "pgd", "freelb", "freelb++")
_BASE = ("--size", "base", "--train-updates", 60, "--rounds", 5)
_LARGE = ("--size", "base", "--train-updates", 30, "--rounds", 3)

# Of a model that was trained in a minute accuracy far above chance is asked, of a rehearsal none.
FULL = Effort(
    {"8 x 512": (*_BASE, "--precision", "bf16", "fp16", "fp32", "--modes", *_COSTS, *_METHODS)},
    {"64 x 512": (*_LARGE, "--batch", 64, "--precision", "bf16", "--modes", *_COSTS, "freelb")},
    **{"megabytes": 2.0, "layers": 6, "width": 384, "updates": 400, "per_class": 400},
    times_chance=2.0,
)
_TINY = ("--size", "tiny", "--rounds", 1)
QUICK = Effort(
    {"8 x 32": (*_TINY, "--precision", "bf16", "fp32", "--modes", *_COSTS, *_METHODS)},
    {"16 x 32": (*_TINY, "--batch", 16, "--precision", "bf16", "--modes", *_COSTS)},
    **{"megabytes": 1.0, "layers": 2, "width": 64, "updates": 30, "per_class": 100},
    times_chance=0.0,
)


class StepError(Exception):
    """A step went wrong; the message is for the page."""


class Runner:
    """Runs commands and keeps what they say.

    Args:
        logs: the folder for it.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs

    def __call__(self, name: str, *command: Any) -> Path:
        """Run a command; returns the file with what it said.

        Raises:
            StepError: by its exit status.
        """
        begun = time.monotonic()
        log = self._logs / f"{name}.log"
        words = [str(word) for word in command]
        with log.open("w", encoding="utf-8") as said:
            done = subprocess.run(words, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        if done.returncode:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise StepError(f"{name} ended with status {done.returncode}:\n{tail}")
        print(f"{name} {time.monotonic() - begun:.0f} s, ", end="", flush=True)
        return log


# The steps.


def run_tests(run: Runner, work: Path) -> Report:
    """The tests marked ``gpu``: how many passed, and which did not."""
    results = work / "tests.xml"
    command = ["-m", "pytest", "-m", "gpu", "tests/gpu", "-q", f"--junitxml={results}"]
    command += ["-n", str(min(4, os.cpu_count() or 1))]
    failure = None
    try:
        run("tests", sys.executable, *command)
    except StepError as error:
        failure = error
    if not results.exists():
        raise failure or StepError("pytest wrote no results")
    [suite] = ElementTree.parse(results).getroot().iter("testsuite")
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        {"test": case.get("name"), "message": (case.find(kind).get("message") or "")[:500]}
        for case in suite.iter("testcase")
        for kind in ("failure", "error")
        if case.find(kind) is not None
    ]
    return {**count, "seconds": float(suite.get("time", 0)), "failed": failed}


def run_benchmarks(run: Runner, work: Path, batches: dict[str, tuple[Any, ...]]) -> Report:
    """What an update costs, for each batch."""
    reports = {}
    for batch, options in batches.items():
        numbers = work / f"benchmark {batch}.json"
        run(
            *(f"benchmark {batch}", sys.executable, ROOT / "scripts" / "benchmark.py", *options),
            *("--tasks", "masked_lm", "--optimizer", "--json", numbers),
        )
        reports[batch] = json.loads(numbers.read_text(encoding="utf-8"))
    return reports


def write_data(run: Runner, work: Path, effort: Effort) -> Report:
    """A corpus and a classification task, binarised."""
    found = deduplicate(harvest(effort.megabytes, workers=8))
    raw, bare = work / "raw", work / "vocabulary"
    raw.mkdir()
    bare.mkdir()
    for split in ("train", "valid"):
        lines = (plain(line) for document in documents(found, split) for line in [*document, ""])
        (raw / split).write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(
        *("preprocess", "fairseq-preprocess", "--only-source", "--workers", 4),
        *("--trainpref", raw / "train", "--validpref", raw / "valid"),
        *("--nwordssrc", 8000, "--destdir", work / "corpus"),
    )
    shutil.copy(work / "corpus" / "dict.txt", bare)
    per_class = {split: effort.per_class // (1 if split == "train" else 4) for split in
                 ("train", "valid", "test")}  # fmt: skip
    examples = classification(found, per_class)
    for split in ("train", "valid"):
        rows = [{"text": plain(e.texts[0]), "label": e.label} for e in examples[split]]
        (raw / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        *("prepare", "alum-prepare", "--train", raw / "train.jsonl", "--valid"),
        *(raw / "valid.jsonl", "--columns", "text", "--label", "label"),
        *("--vocabulary", bare, "--max-positions", 128, "--output", work / "task"),
    )
    return {
        "classes": len({example.label for example in examples["train"]}),
        "train": len(examples["train"]),
        "valid": len(examples["valid"]),
    }


def plain(text: str) -> str:
    """Words and punctuation marks, apart, in lower case."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def run_training(run: Runner, work: Path, effort: Effort, on_gpu: bool) -> Report:
    """Stock and ALUM, from scratch and fine-tuned from what ALUM made; the robustness of both."""
    report: Report = {"data": write_data(run, work, effort)}
    model = [
        *("--arch", "roberta", "--encoder-layers", effort.layers),
        *("--encoder-embed-dim", effort.width, "--encoder-ffn-embed-dim", 4 * effort.width),
        *("--encoder-attention-heads", effort.width // 32, "--max-positions", 128),
    ]
    shared = [
        *("--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--clip-norm", 1.0),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", effort.updates // 10),
        *("--total-num-update", effort.updates, "--max-update", effort.updates),
        *("--log-format", "json", "--log-interval", 10, *model),
        # Once, at the end: a checkpoint an epoch would take longer than the training.
        *("--validate-interval", 1000, "--save-interval", 1000, "--no-save-optimizer-state"),
        "--no-epoch-checkpoints",
        *([] if on_gpu else ["--cpu"]),
    ]

    def train(name: str, data: str, precision: str, *options: Any) -> Report:
        command = ["fairseq-train", work / data, "--save-dir", work / name, *shared, *options]
        command += [f"--{precision}"] if on_gpu else []
        log = run(name, *command)
        *_, valid = logged(log, "valid")
        # The first tenth warms up.
        rates = [float(one["ups"]) for one in logged(log, "train_inner") if float(one["ups"]) > 0]
        rates = sorted(rates[len(rates) // 10 :])
        figures = {k: float(v) for k, v in valid.items() if re.fullmatch(r"valid_[\w]+", k)
                   and k not in ("valid_num_updates",)}  # fmt: skip
        return {
            "precision": precision if on_gpu else "fp32",
            "updates": effort.updates,
            "seconds_an_update": 1 / rates[len(rates) // 2],
            **figures,
        }

    plugin = ["--user-dir", "alum_fairseq"]
    corpus = [
        *("--sample-break-mode", "none", "--tokens-per-sample", 128, "--batch-size", 64),
        # 1e-3 ends in an encoder that says the same of every text, and nothing learns from it.
        *("--lr", 3e-4),
    ]
    report["pre-training, stock"] = train(
        *("mlm-stock", "corpus", "fp16", "--task", "masked_lm", "--criterion", "masked_lm"), *corpus
    )
    report["pre-training, ALUM"] = train(
        *("mlm-alum", "corpus", "fp16", *plugin, "--task", "alum_masked_lm"),
        *("--criterion", "alum_mlm", *corpus),
    )
    task = [
        *("--task", "alum_sentence_prediction", "--num-classes", report["data"]["classes"]),
        *("--init-token", 0, "--separator-token", 2, "--batch-size", 32, "--lr", 3e-4),
        *("--finetune-from-model", work / "mlm-alum" / "checkpoint_last.pt"),
        *("--required-batch-size-multiple", 1, "--best-checkpoint-metric", "accuracy"),
        *("--maximize-best-checkpoint-metric", "--dropout", 0.1, "--attention-dropout", 0.1),
    ]
    for name, criterion in (("stock", "sentence_prediction"), ("ALUM", "alum_sentence_prediction")):
        report[f"fine-tuning, {name}"] = train(
            *(f"finetuned-{name.lower()}", "task", "bf16", *plugin, *task),
            *("--criterion", criterion, "--classification-head-name"),
            "sentence_classification_head",
        )
    return {"training": report, "robustness": run_robustness(run, work, on_gpu)}


def check_learnt(report: Report, times_chance: float) -> None:
    """Make sure that every run learnt.

    Raises:
        StepError: one did not.
    """
    chance = 100 / report["data"]["classes"]
    for name in ("fine-tuning, stock", "fine-tuning, ALUM"):
        accuracy = report[name]["valid_accuracy"]
        if accuracy < times_chance * chance:
            raise StepError(
                f"{name}: {accuracy:.1f}% of the answers are right, by chance {chance:.1f}"
            )


def run_robustness(run: Runner, work: Path, on_gpu: bool) -> Report:
    """What an attack on the embeddings leaves of the accuracy."""
    run(
        *("robustness", "alum-robustness", "--quick", "--parts", "linf", "l2"),
        *("--path", f"stock={work / 'finetuned-stock' / 'checkpoint_best.pt'}"),
        f"ALUM={work / 'finetuned-alum' / 'checkpoint_best.pt'}",
        *("--data", work / "task", "--output", work / "robustness"),
        *([] if on_gpu else ["--cpu"]),
    )
    report = json.loads((work / "robustness" / "report.json").read_text(encoding="utf-8"))
    return {
        measure["title"]: {name: one["value"] for name, one in measure["values"].items()}
        | {"unit": measure["unit"]}
        for measure in report["measures"]
        if measure["main"]
    }


# The page.


def page(report: Report) -> Iterator[str]:
    """The report in Markdown."""
    of = report["machine"]
    yield f"# {of['device']}"
    yield ""
    yield (
        f"Made by `bash scripts/gpu.sh`{' --quick' * report['quick']} in "
        f"{sum(report['seconds'].values()):.0f} s "
        f"with torch {of['torch']}, fairseq {of['fairseq']}, Python {of['python']}; seed 1."
    )
    for name, message in report["failures"].items():
        yield f"\n**{name} failed**\n\n```\n{message}\n```"
    costs = {**report.get("cost", {}), **report.get("large", {})}
    if costs:
        yield from _benchmarks(costs)
    if "training" in report:
        yield from _training(report["training"]["training"])
        yield from _robustness(report["training"]["robustness"])
    if "tests" in report:
        yield from _tests(report["tests"])


def _tests(tests: Report) -> Iterator[str]:
    bad = tests["failures"] + tests["errors"]
    yield "\n## Tests\n"
    passed = tests["tests"] - bad - tests["skipped"]
    yield (
        f"`pytest -m gpu`: {passed} passed, {bad} failed, {tests['skipped']} skipped, in "
        f"{tests['seconds']:.0f} s."
    )
    for one in tests["failed"]:
        yield f"- `{one['test']}`: {one['message'].splitlines()[0] if one['message'] else ''}"


def _benchmarks(reports: Report) -> Iterator[str]:
    size = next(iter(reports.values()))["size"]
    yield "\n## What an update costs\n"
    yield (
        "Forward and backward pass and Adam's step of a masked language model, "
        f"{size['layers']} layers of width {size['width']}, vocabulary {size['vocabulary']:,}, as "
        "multiples of stock fairseq's in the same run. Time: median (quartiles). Gain: the "
        "divergence found over that of a random perturbation of equal length. Waits: how often "
        "the host waits for the GPU."
    )
    for batch, report in reports.items():
        for precision, results in report["results"]["masked_lm"].items():
            stock = results["stock"]
            yield f"\n### {precision}, {batch} tokens\n"
            yield (
                f"Stock: {1000 * stock['seconds']:.1f} ms, {stock['memory'] / 2**30:.2f} GiB, "
                f"{stock['flops'] / 1e12:.2f} TFLOP.\n"
            )
            yield "| | FLOPs | time | memory | gain | waits |"
            yield "| --- | --- | --- | --- | --- | --- |"
            for mode in (mode for mode in MODES if mode in results):
                yield _row(mode, results[mode])


def _row(mode: str, r: Report) -> str:
    spread = f"{r['time_ratio_low']:.2f} to {r['time_ratio_high']:.2f}"
    gain = f"{r['gain']:.1f}" if "gain" in r else ""
    return (
        f"| {mode} | {r['flops_ratio']:.2f} | {r['time_ratio']:.2f} ({spread}) "
        f"| {r['memory_ratio']:.2f} | {gain} | {r.get('host_waits', '')} |"
    )


def _training(training: Report) -> Iterator[str]:
    data = training["data"]
    yield "\n## Training\n"
    yield (
        "`fairseq-train` with the optimizer, one loader worker and all else as it comes. "
        f"Fine-tuning: which of {data['classes']} packages is this paragraph from? "
        f"{data['train']:,} examples to train on, {data['valid']:,} to validate; both from what "
        "ALUM pre-trained.\n"
    )
    yield "| | precision | updates | seconds per update | times stock | loss | accuracy |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, one in training.items():
        if name == "data":
            continue
        stock = training[name.replace("ALUM", "stock")]["seconds_an_update"]
        accuracy = f"{one['valid_accuracy']:.1f}%" if "valid_accuracy" in one else ""
        yield (
            f"| {name} | {one['precision']} | {one['updates']} | {one['seconds_an_update']:.4f} "
            f"| {one['seconds_an_update'] / stock:.2f} | {one['valid_loss']:.2f} | {accuracy} |"
        )


def _robustness(robustness: Report) -> Iterator[str]:
    yield "\n## Robustness of the two that were fine-tuned\n"
    yield "`alum-robustness --quick --parts linf l2`\n"
    yield "| | stock | ALUM |"
    yield "| --- | --- | --- |"
    for title, one in robustness.items():
        cells = (f"{one[name]:.1f}{one['unit']}" if one[name] is not None else "-"
                 for name in ("stock", "ALUM"))  # fmt: skip
        yield f"| {title} | {' | '.join(cells)} |"


# The command.


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = cli.make_parser("gpu.sh", __doc__)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "gpu", help="folder of the page (docs/gpu)"
    )
    parser.add_argument("--quick", action="store_true", help="a rehearsal with tiny models")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="only these (all)")
    options = parser.parse_args(argv)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.quick:
        parser.error("there is no GPU; --quick rehearses all steps on a CPU")
    effort = QUICK if options.quick else FULL
    return 1 if measure(options.output, effort, on_gpu, options.steps) else 0


def measure(output: Path, effort: Effort, on_gpu: bool, wanted: Sequence[str]) -> dict[str, str]:
    """Run the steps, and write the page after each; returns what went wrong."""
    of = machine(torch.device("cuda" if on_gpu else "cpu"))
    output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", of["device"].lower()).strip("-")
    numbers = output / f"{name}.json"
    report: Report = {"machine": of, "quick": effort is QUICK, "seconds": {}, "failures": {}}
    before = json.loads(numbers.read_text(encoding="utf-8")) if numbers.exists() else {}
    if all(before.get(key) == report[key] for key in ("machine", "quick")):
        report = before
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = Runner(work)
        steps: dict[str, Callable[[], Report]] = {
            "cost": lambda: run_benchmarks(run, work, effort.costs),
            "training": lambda: run_training(run, work, effort, on_gpu),
            "tests": lambda: run_tests(run, work),
            "large": lambda: run_benchmarks(run, work, effort.large),
        }
        for number, step in enumerate(wanted, 1):
            print(f"step {number} of {len(wanted)}: {step} ... ", end="", flush=True)
            started = time.monotonic()
            report["failures"].pop(step, None)
            try:
                report[step] = steps[step]()
                if step == "tests" and report[step]["failed"]:
                    raise StepError(f"{len(report[step]['failed'])} tests failed")
                if step == "training":
                    check_learnt(report[step]["training"], effort.times_chance)
            except StepError as failure:
                report["failures"][step] = str(failure)
                print(f"failed: {failure}")
            report["seconds"][step] = time.monotonic() - started
            print(f"in all {report['seconds'][step]:.0f} s", flush=True)
            for file, text in (
                (numbers, json.dumps(report, indent=2)),
                (output / f"{name}.md", "\n".join(page(report))),
            ):
                with whole_file(file) as aside:
                    aside.write_text(text + "\n", encoding="utf-8")
    print(f"\n{output / name}.md")
    return report["failures"]


if __name__ == "__main__":
    sys.exit(main())
