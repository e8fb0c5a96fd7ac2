"""One cell: trains with fairseq-train, measures, and writes what came of it as JSON.

``grid.py`` starts it, and tells it its own process, with which it ends.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))

from cells import REVISION, TASKS, Cell, Effort, Recipe, updates_of
from orphans import end_with
from perplexity_attack import PERPLEXITY_ATTACK
from sources import Sources
from training_log import logged

from alum_fairseq.checkpoints.reading import config_of, load_state
from alum_fairseq.data.record import DataRecord
from alum_fairseq.files import whole_file
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.predictor import MAX_TOKENS
from alum_fairseq.robustness.attacks.greedy import Limits
from alum_fairseq.robustness.attacks.pgd import ProjectedGradient
from alum_fairseq.robustness.examples import from_prepared, sample
from alum_fairseq.robustness.parts import PARTS, Part
from alum_fairseq.robustness.parts.clean import Clean
from alum_fairseq.robustness.parts.greedy import Misspellings
from alum_fairseq.robustness.parts.noise import Noise
from alum_fairseq.robustness.parts.part import Records
from alum_fairseq.robustness.parts.smoothness import YARDSTICK, Smoothness
from alum_fairseq.robustness.report.summary import build_report
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example

# The same examples for every model, whatever its seed.
_MEASURING_SEED = 1
_NORMS = ("linf", "l2")
_NAME = "model"
# Vectors of 256 and 512 bits, and units for bfloat16.
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_TOOL = Path(__file__).with_name("tool.py")
_MODEL_OPTIONS = (
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "activation_fn",
)


@dataclass(frozen=True)
class Paths:
    """Where a cell finds and leaves things.

    Attributes:
        output: of the grid.
        data: of the data sets.
        encoder: as given to the grid, or None.
        key: of the cell.
        start: key of the pre-training that it starts from, or None.
    """

    output: Path
    data: Path
    encoder: Path | None
    key: str
    start: str | None

    @property
    def work(self) -> Path:
        """A folder of its own."""
        return self.output / "work" / self.key

    @property
    def spec(self) -> Path:
        """What the worker is told."""
        return self.work / "cell.json"

    @property
    def result(self) -> Path:
        """What it tells."""
        return self.work / "result.json"

    @property
    def log(self) -> Path:
        """What fairseq printed."""
        return self.output / "logs" / f"{self.key}.log"

    def model(self, key: str) -> Path:
        """The weights that a pre-training leaves."""
        return self.output / "models" / f"{key}.pt"


def write_spec(cell: Cell, paths: Paths) -> None:
    """Tell the worker what to do."""
    paths.work.mkdir(parents=True, exist_ok=True)
    told = {name: None if value is None else str(value) for name, value in asdict(paths).items()}
    paths.spec.write_text(json.dumps({"cell": asdict(cell), "paths": told}, indent=1))


def read_spec(path: Path) -> tuple[Cell, Paths]:
    """What :func:`write_spec` wrote."""
    told = json.loads(path.read_text())
    found = {
        name: Path(value) if value is not None and name in ("output", "data", "encoder") else value
        for name, value in told["paths"].items()
    }
    return _cell(told["cell"]), Paths(**found)


def _cell(fields: Mapping[str, Any]) -> Cell:
    effort = dict(fields["effort"])
    effort["noise_rates"] = tuple(effort["noise_rates"])
    start = fields["start"]
    return Cell(
        **{
            **fields,
            "recipe": Recipe(**fields["recipe"]),
            "effort": Effort(**effort),
            "start": None if start is None else _cell(start),
            "study_order": tuple(fields["study_order"]),
        }
    )


# ------------------------------------------------------------------------------------- the commands


def finetuning_command(
    cell: Cell, data: Path, start: Path, architecture: Sequence[str], folder: Path
) -> list[str]:
    """The command line that fine-tunes.

    Args:
        cell: what to train.
        data: folder that alum-prepare made.
        start: the model to start from.
        architecture: the options that describe it.
        folder: where checkpoints go.
    """
    record, task = DataRecord.load(data), TASKS[cell.task]
    updates = updates_of(cell, record.splits["train"].rows)
    return [
        "fairseq-train", str(data), "--user-dir", "alum_fairseq",
        "--task", f"alum_{task.problem}", "--criterion", f"alum_{task.problem}",
        *alum_options(cell), *record.train_options(), *task.options, "--no-shuffle",
        "--finetune-from-model", str(start), *architecture,
        *_optimizer(cell, updates), "--batch-size", str(cell.recipe.batch),
        "--batch-size-valid", "64", "--required-batch-size-multiple", "1",
        "--best-checkpoint-metric", task.metric, "--maximize-best-checkpoint-metric",
        "--no-last-checkpoints", *_common(cell, updates, folder),
    ]  # fmt: skip


def pretraining_command(
    cell: Cell,
    data: Path,
    start: Path | None,
    architecture: Sequence[str],
    positions: int,
    folder: Path,
) -> list[str]:
    """The command line that pre-trains; arguments as for :func:`finetuning_command`.

    ``positions`` is for how many tokens the model has room.
    """
    recipe, updates = cell.recipe, updates_of(cell, 0)
    return [
        "fairseq-train", str(data), "--user-dir", "alum_fairseq",
        "--task", "alum_masked_lm", "--criterion", "alum_mlm", *alum_options(cell),
        *([] if start is None else ["--finetune-from-model", str(start)]), *architecture,
        "--max-positions", str(positions),
        *_optimizer(cell, updates), "--batch-size", str(recipe.batch), "--batch-size-valid", "32",
        "--sample-break-mode", "none", "--tokens-per-sample", str(recipe.tokens),
        "--validate-interval-updates", str(max(1, updates // 10)),
        *_common(cell, updates, folder),
    ]  # fmt: skip


def attack_command(data: Path, path: Path) -> list[str]:
    """The command line that attacks a masked language model on the test split."""
    return [
        "fairseq-validate", str(data), "--user-dir", "alum_fairseq", "--task", "masked_lm",
        "--path", str(path), "--model-overrides", str({"criterion": PERPLEXITY_ATTACK}),
        "--valid-subset", "test", "--batch-size", "32", "--num-workers", "0",
        *_device(), "--log-format", "json",
    ]  # fmt: skip


def alum_options(cell: Cell) -> list[str]:
    """The ``--alum-*`` options of a cell, and fairseq's of the momentum model that they need."""
    momentum = cell.resolved.get("alum-proximal", 0) > 0
    return _words(cell.options) + ["--store-ema"] * momentum


def scratch_architecture(recipe: Recipe) -> list[str]:
    """The options of a model that is trained from random weights."""
    sizes = (recipe.layers, recipe.width, 4 * recipe.width, max(1, recipe.width // 32))
    return [
        "--arch", "roberta_base", *_words(dict(zip(_MODEL_OPTIONS, sizes, strict=False))),
    ]  # fmt: skip


def architecture_of(path: Path) -> tuple[list[str], int]:
    """The options that describe the model of a checkpoint, and for how many tokens it has room."""
    model = config_of(load_state(path), path).model
    # Of a checkpoint that fairseq did not write, a Namespace.
    known = vars(model) if isinstance(model, Namespace) else dict(model)
    found = {"arch": known.get("arch") or known["_name"]}
    names = (*_MODEL_OPTIONS, "alum_layer_norm_eps")
    found |= {name: known[name] for name in names if name in known}
    return _words(found), int(known["max_positions"])


def _words(options: Mapping[str, Any]) -> list[str]:
    return [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _optimizer(cell: Cell, updates: int) -> list[str]:
    return [
        "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--adam-eps", "1e-6",
        "--weight-decay", "0.01", "--clip-norm", "1.0", "--lr", str(cell.recipe.rate),
        "--lr-scheduler", "polynomial_decay", "--warmup-updates", str(max(1, updates // 10)),
        "--total-num-update", str(updates), "--max-update", str(updates),
    ]  # fmt: skip


def _common(cell: Cell, updates: int, folder: Path) -> list[str]:
    rate = str(cell.recipe.dropout)
    return [
        "--dropout", rate, "--attention-dropout", rate, "--pooler-dropout", rate,
        "--seed", str(cell.seed), *_device(), "--num-workers", "0", "--log-format", "json",
        "--log-interval", str(max(1, updates // 40)), "--no-epoch-checkpoints",
        "--no-save-optimizer-state", "--save-dir", str(folder),
    ]  # fmt: skip


def _device() -> list[str]:
    """A GPU where there is one."""
    return [] if _on_gpu() else ["--cpu"]


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# ---------------------------------------------------------------------------------------- running


def run_cell(cell: Cell, paths: Paths) -> dict[str, Any]:
    """Train and measure; returns what is known of it, fit for JSON."""
    began = time.monotonic()
    sources = Sources(paths.output, paths.data, paths.encoder)
    found = _pretrain(cell, paths, sources) if cell.pretrains else _finetune(cell, paths, sources)
    return {
        "study": cell.study,
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "key": paths.key,
        "status": "done",
        "size": cell.size,
        "factor": cell.factor,
        "options": dict(cell.options),
        "resolved": cell.resolved,
        "recipe": asdict(cell.recipe),
        "effort": asdict(cell.effort),
        "start": cell.start.method if cell.start else None,
        "flops_factor": round(cell.flops_factor, 4),
        **found,
        "seconds": round(time.monotonic() - began, 1),
        "revision": REVISION,
        "machine": machine(),
        "versions": versions(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _finetune(cell: Cell, paths: Paths, sources: Sources) -> dict[str, Any]:
    start = paths.model(paths.start) if paths.start else sources.encoder / "model.pt"
    architecture, positions = architecture_of(start)
    data = sources.task(cell.task, cell.size, cell.seed, min(512, positions))
    command = finetuning_command(cell, data, start, architecture, paths.work)
    training = _train(command, paths, cell)
    metric = f"valid_{TASKS[cell.task].metric}"
    curve = training["curve"]
    best = paths.work / "checkpoint_best.pt"
    return {
        **training,
        "metric": TASKS[cell.task].measure,
        # A correlation with a model that always says the same is not a number, and not logged.
        "dev": max((point[metric] for point in curve if metric in point), default=None),
        **measure(cell.effort, best, data),
    }


def _pretrain(cell: Cell, paths: Paths, sources: Sources) -> dict[str, Any]:
    data = sources.text()
    start = paths.model(paths.start) if paths.start else None
    if cell.head_only:
        start = sources.encoder / "model.pt"
    architecture, positions = scratch_architecture(cell.recipe), 2 * cell.recipe.tokens
    if start is not None:
        architecture, positions = architecture_of(start)
    command = pretraining_command(cell, data, start, architecture, positions, paths.work)
    training = _train(command, paths, cell)
    last = paths.work / "checkpoint_last.pt"
    before = len(list(logged(paths.log, "test")))
    _run(attack_command(data, last))
    stats = _numbers(list(logged(paths.log, "test"))[before:][-1])
    paths.model(paths.key).parent.mkdir(exist_ok=True)
    os.replace(last, paths.model(paths.key))
    return {
        **training,
        "metric": "ppl",
        "dev": training["curve"][-1]["valid_ppl"],
        "test": {
            "ppl": stats["test_ppl"],
            "adv_ppl": stats["test_adv_ppl"],
            "gain": stats.get("test_adv_gain"),
        },
    }


def _train(command: Sequence[str], paths: Paths, cell: Cell) -> dict[str, Any]:
    """Run fairseq-train; what it took, and how it went."""
    began, cpu = time.monotonic(), _cpu_seconds()
    worked = paths.work / "update-cpu-seconds"
    spec = {"products": cell.recipe.products, "seconds": str(worked), "head_only": cell.head_only}
    _run(command, **spec)
    wall, cpu = time.monotonic() - began, _cpu_seconds() - cpu
    epochs = [_numbers(stats) for stats in logged(paths.log, "train")]
    curve = [
        {name: stats[name] for name in stats if name != "epoch" and not name.endswith("wps")}
        for stats in map(_numbers, logged(paths.log, "valid"))
    ]
    gains = [stats["train_adv_gain"] for stats in epochs if stats.get("train_adv_gain")]
    return {
        "command": [word.replace(str(paths.output), "OUTPUT") for word in command],
        "updates": int(epochs[-1]["train_num_updates"]),
        "train_seconds": round(wall, 1),
        "train_cpu_seconds": round(cpu, 1),
        "update_seconds": sum(stats.get("train_train_wall", 0) for stats in epochs),
        "update_cpu_seconds": float(worked.read_text(encoding="utf-8")),
        "train_loss": [stats["train_loss"] for stats in epochs],
        "gain": gains[-1] if gains else None,
        "curve": curve,
    }


def _run(command: Sequence[str], **spec: Any) -> None:
    """Run one of fairseq's tools.

    Args:
        command: its name and arguments.
        spec: for ``tool.py``.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    spec = {"tool": command[0], "products": "highest", **spec}
    subprocess.run(
        [sys.executable, str(_TOOL), json.dumps(spec), *command[1:]],
        stdin=subprocess.DEVNULL,
        check=True,
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _numbers(stats: Mapping[str, Any]) -> dict[str, float]:
    """What fairseq logs as text, as numbers."""
    found = {}
    for name, value in stats.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return {name: value for name, value in found.items() if math.isfinite(value)}


# --------------------------------------------------------------------------------------- measuring


def measure(effort: Effort, path: Path, data: Path) -> dict[str, Any]:
    """Clean performance of a checkpoint on the whole test split, and its robustness on parts of it.

    Returns:
        ``test``: every measure of the robustness report by its key; ``radii``: for each norm the
        smallest radius that broke each attacked example, in order, None where none did;
        ``measure_seconds``: by part.
    """
    predictor = Predictor.load(path, data=data, device="cuda" if _on_gpu() else "cpu")
    examples = from_prepared(data, "test", predictor)
    problem = predictor.problem.within(None, [example.answer for example in examples])
    tolerance = None if problem.categorical else problem.tolerance
    attacked = sample(examples, effort.greedy, _MEASURING_SEED)
    subject = Subject(predictor, tolerance, MAX_TOKENS, _MEASURING_SEED, attacked)
    parts = _parts(effort)
    records: dict[str, Records] = {}
    seconds: dict[str, float] = {}
    for part, count in parts:
        chosen = sample(examples, count, _MEASURING_SEED)
        began = time.monotonic()
        records[part.name] = Records(problem, chosen, [_measured(part, subject, chosen)])
        seconds[part.name] = round(time.monotonic() - began, 1)
    report = build_report(
        data={
            "source": str(data),
            "examples": len(examples),
            "kind": problem.name,
            "labels": list(problem.labels) or None,
            "tolerance": tolerance,
        },
        models=[{"name": _NAME, "checkpoints": [{"path": str(path)}]}],
        parts=[part for part, _ in parts],
        records=records,
        settings={},
        versions={},
        seconds={},
        created="",
        resamples=100,
    )
    return {
        "test": {one["key"]: _finite(one["values"][_NAME]["value"]) for one in report["measures"]},
        "radii": {
            norm: sorted(
                (_short(record["epsilon"]) for record in records[norm].every()),
                key=lambda radius: math.inf if radius is None else radius,
            )
            for norm in _NORMS
            if norm in records
        },
        "measure_seconds": seconds,
    }


def _parts(effort: Effort) -> list[tuple[Part, int]]:
    """What is measured, and on how many examples (0: all)."""
    attack = (effort.steps, effort.restarts, ("loss",))
    wanted: list[tuple[Part, int]] = [
        (Noise(effort.noise_rates, _MEASURING_SEED, None), effort.noise),
        (
            Misspellings(_MEASURING_SEED, None, Limits(max_queries=effort.queries)),
            effort.greedy,
        ),
        *(
            (PARTS[norm](ProjectedGradient(norm, *attack), _MEASURING_SEED), effort.embeddings)
            for norm in _NORMS
        ),
        (Smoothness(YARDSTICK.epsilon, _MEASURING_SEED), effort.smoothness),
    ]
    return [(Clean(), 0), *((part, count) for part, count in wanted if count)]


def _measured(part: Part, subject: Subject, examples: Sequence[Example]) -> list[Any]:
    """The records of a part, measured with the longest examples first: little padding."""
    order = sorted(range(len(examples)), key=lambda i: -sum(map(len, examples[i].texts)))
    found: list[Any] = [None] * len(examples)
    for i, record in zip(order, part.run(subject, [examples[i] for i in order]), strict=True):
        found[i] = record
    return found


def _finite(value: float | None) -> float | None:
    """None for a median that is beyond every radius, and for a ratio to nothing."""
    return value if value is not None and math.isfinite(value) else None


def _short(radius: float | None) -> float | None:
    return None if radius is None else float(f"{radius:.3g}")


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if _on_gpu() else None,
    }


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return processor_in(told)


def processor_in(told: str) -> str:
    """A processor's name and what makes one faster than another of that name.

    Args:
        told: by Linux, in ``/proc/cpuinfo``.
    """
    entries = [line.partition(":") for line in told.splitlines()]
    # Of the first core; the later ones are alike.
    known = {name.strip(): value.strip() for name, _, value in reversed(entries)}
    flags = known.get("flags", "").split()
    features = [feature for feature in _FEATURES if feature in flags]
    name = known.get("model name", "")
    return f"{name} ({', '.join(features)})" if features else name


def versions() -> dict[str, str]:
    """Of the software."""
    found = {"python": platform.python_version()}
    for package in ("alum_fairseq", "torch", "fairseq", "fairseq-fixed", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Run the cell of a file; returns the exit status."""
    if len(sys.argv) > 2:
        end_with(int(sys.argv[2]))
    cell, paths = read_spec(Path(sys.argv[1]))
    result = run_cell(cell, paths)
    with whole_file(paths.result) as aside:
        aside.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    for checkpoint in paths.work.glob("*.pt"):
        checkpoint.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
