"""The studies of the evidence, as data: what is trained on what, how, and in which order.

A *cell* is one training run and everything that is measured of it. Two cells with the same
:func:`identity` would give the same numbers, whatever they are called.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from alum_fairseq.adversarial.precision import NOISE_STD
from alum_fairseq.adversarial.presets import get_preset
from alum_fairseq.errors import UsageError

# Raise it when the plugin's training or its measuring changes what comes out; every cell is then
# run anew. A change of a preset's numbers needs no raise: they are part of the identity.
REVISION = 1

Options = Mapping[str, Any]

# ----------------------------------------------------------------------------------- the data sets


@dataclass(frozen=True)
class Task:
    """A data set, as it lies in the folder of ``--data``.

    Attributes:
        folder: below ``--data``.
        columns: of the texts: names, or numbers where the files have no names.
        label: the column of the label.
        metric: what fairseq calls the metric that chooses the best checkpoint.
        measure: what the robustness report calls it, on the test split.
        options: of ``fairseq-train``, so that it logs the metric.
        scale: that the numbers of a regression are divided by; None: no regression.
        files: of the splits. Where all are one file, it is shared out: see :data:`SHARES`.
        form: of the files, as ``alum-prepare --format`` has it.
        problem: what fairseq's task and criterion are called, without ``alum_``.
        rows: about how many rows the training split has, for the time that is left.
        cost: of a row, compared with one of SST-2, likewise.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    metric: str
    measure: str
    options: tuple[str, ...] = ()
    scale: float | None = None
    files: Mapping[str, str] = field(default_factory=lambda: _TSV)
    form: str = "tsv"
    problem: str = "sentence_prediction"
    rows: int = 0
    cost: float = 1.0

    @property
    def shared(self) -> bool:
        """Whether one file is shared out among the splits."""
        return len(set(self.files.values())) == 1


_TSV = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
# Of every six rows in the order of the file (of questions: of every six texts' sources), those that
# a split gets, from 0.
SHARES = {"train": (0, 1, 2, 3), "valid": (4,), "test": (5,)}
_SICK = ("sentence_A", "sentence_B")
TASKS: dict[str, Task] = {
    "sst2": Task("sst2", ("1",), "2", "accuracy", "clean.accuracy", rows=6920),
    "sick-e": Task(
        "sick", _SICK, "entailment_judgment", "accuracy", "clean.accuracy", rows=4500
    ),
    "sick-r": Task(
        "sick", _SICK, "relatedness_score", "pearson", "clean.pearson",
        ("--report-pearson-and-spearman",), scale=5.0, rows=4500,
    ),
    # The test split is the authors' out-of-domain one: that of GLUE has no labels.
    "cola": Task(
        "cola", ("4",), "2", "mcc", "clean.mcc", ("--report-mcc",),
        files=_TSV | {"test": "dev_ood.tsv"}, rows=8551, cost=0.5,
    ),
    # Of these two only one split can be had.
    "ag_news": Task(
        "ag_news", ("2+3",), "1", "accuracy", "clean.accuracy",
        files=dict.fromkeys(_TSV, "test.csv"), form="csv", rows=5068, cost=2.5,
    ),
    "policyqa": Task(
        "policyqa", ("question", "context"), "answers", "f1", "clean.f1",
        files=dict.fromkeys(_TSV, "dev.json"), form="squad", problem="span_prediction",
        rows=2628, cost=6.0,
    ),
    "wnut17": Task(
        "wnut17", ("1",), "2", "f1", "clean.f1",
        files={"train": "wnut17train.conll", "valid": "emerging.dev.conll",
               "test": "emerging.test.annotated"},
        form="conll", problem="sequence_tagging", rows=1228, cost=1.5,
    ),
}  # fmt: skip
TEXT = "text"  # the task of pre-training

# ------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Effort:
    """How much is measured of a fine-tuned model on the test split, beside clean performance.

    Attributes:
        noise: examples with typing mistakes; 0: none.
        noise_rates: shares of the words that get one.
        greedy: examples whose words are attacked; 0: none.
        queries: for each of them, at most.
        embeddings: examples whose embeddings are attacked, in either norm; 0: none.
        steps: of that attack.
        restarts: of that attack.
        smoothness: examples whose divergences are measured; 0: none.
    """

    noise: int = 400
    noise_rates: tuple[float, ...] = (0.2,)
    greedy: int = 150
    queries: int = 100
    embeddings: int = 100
    steps: int = 6
    restarts: int = 1
    smoothness: int = 200


NOTHING = Effort(noise=0, greedy=0, embeddings=0, smoothness=0)
UNATTACKED = Effort(greedy=0, embeddings=0)


@dataclass(frozen=True)
class Recipe:
    """What all methods on a task share.

    Attributes:
        rate: peak learning rate.
        epochs: of fine-tuning; 0 where ``updates`` says how long.
        updates: of pre-training.
        batch: sequences an update.
        dropout: of everything.
        tokens: in a sequence of pre-training.
        layers: of a model that is trained from scratch.
        width: of that.
        products: how exact torch's products of float32 matrices are in training
            (``torch.set_float32_matmul_precision``). "medium" uses a processor's units for
            bfloat16, at nearly twice the speed on ours, or a GPU's for TensorFloat-32; what is
            measured of the trained model is always computed with the "highest".
    """

    rate: float
    epochs: float = 0
    updates: int = 0
    batch: int = 32
    dropout: float = 0.1
    tokens: int = 64
    layers: int = 4
    width: int = 192
    products: str = "medium"


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        study: that it belongs to.
        task: a key of :data:`TASKS`, or :data:`TEXT`.
        method: what is compared: a row of the tables.
        seed: of everything that is random, the choice of a part of the training set included.
        options: the ``--alum-*`` options.
        recipe: what it shares with the other methods.
        size: training examples, drawn at random; None: all.
        factor: times the recipe's updates: plain training at the compute of another method.
        start: the pre-training whose model it starts from; None: the real encoder
            (in pre-training: random weights, but see ``head_only``).
        head_only: in pre-training, whether it starts from the real encoder, which has no head to
            predict words with, and trains only that head.
        effort: what is measured.
        study_order: cells with a small number come first.
    """

    study: str
    task: str
    method: str
    seed: int
    options: Options
    recipe: Recipe
    size: int | None = None
    factor: float = 1.0
    start: Cell | None = None
    effort: Effort = field(default_factory=Effort)
    study_order: tuple[int, ...] = ()
    head_only: bool = False

    @property
    def name(self) -> str:
        """What it is called on the screen and by ``--cells``."""
        return f"{self.study}/{self.task}/{self.method}/{self.seed}"

    @property
    def pretrains(self) -> bool:
        """Whether it trains a masked language model, whose weights are kept."""
        return self.task == TEXT

    @property
    def from_scratch(self) -> bool:
        """Whether its model began with random weights, and is small."""
        if self.start is not None:
            return self.start.from_scratch
        return self.pretrains and not self.head_only

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Its ALUM options, with the preset's values where they are silent."""
        return resolved(self.options, self.pretrains)

    @property
    def flops_factor(self) -> float:
        """FLOPs of an update, over those of a plain one.

        Counted in passes through the encoder: forward 1, gradient to the inputs 1, to the weights
        1. Plain training takes 3. The adversarial pass and its part of the backward pass add 3, and
        each ascent step a forward pass and a gradient to the inputs; but a step from zero has its
        gradient from the clean pass. SMART's momentum model goes forward. FreeLB goes forward once
        more than it trains, on its start and on what each step finds.
        """
        options = self.resolved
        if options["alum-alpha"] == 0:
            return 1.0
        steps = 0 if options["alum-ascent"] == "random" else options["alum-steps"]
        if options.get("alum-method") == "freelb":
            return (1 + 3 * (steps + 1)) / 3
        passes = 3 + 2 * (steps - (options.get("alum-start") == "zero"))
        passes += options.get("alum-proximal", 0) > 0
        return 1 + passes / 3 * options.get("alum-fraction", 1.0)

    @property
    def weight(self) -> float:
        """About how long it takes, in units of one plain update of 32 sentences of SST-2."""
        active = 1.0
        if self.pretrains:
            updates = self.recipe.updates * self.factor
            active = 1 - self.options.get("alum-start-update", 0) / max(1, updates)
            rows = updates * self.recipe.batch * self.recipe.tokens / 24
        else:
            task = TASKS[self.task]
            rows = (self.size or task.rows) * task.cost * self.recipe.epochs * self.factor
        cost = 1 + (self.flops_factor - 1) * active
        size = 0.3 if self.from_scratch else 1.0
        return size * rows / 32 * cost + (60 if self.effort.embeddings else 5)

    def identity(self, sources: Mapping[str, str]) -> dict[str, Any]:
        """Everything that its result depends on.

        Args:
            sources: digests of the data sets by folder, and of the encoder.
        """
        needed = ("wikitext2", "python") if self.pretrains else (TASKS[self.task].folder,)
        head_only = {"head_only": True} if self.head_only else {}
        return {
            **head_only,
            "revision": REVISION,
            "task": self.task,
            "seed": self.seed,
            "alum": self.resolved,
            "recipe": asdict(self.recipe),
            "size": self.size,
            "factor": self.factor,
            "effort": asdict(self.effort),
            # The vocabulary is the encoder's, even where its weights are not used.
            "data": {name: sources[name] for name in (*needed, "encoder")},
            "start": self.start.key(sources) if self.start else None,
        }

    def key(self, sources: Mapping[str, str]) -> str:
        """A short name of its identity."""
        text = json.dumps(self.identity(sources), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# The fields of a preset that say what training computes.
_FIELDS = (
    "steps", "epsilon", "epsilon_mode", "step_size", "noise_std", "norm", "norm_scope", "gradient",
    "projection", "divergence", "dropout", "method", "start", "objective", "sides", "proximal",
    "site",
)  # fmt: skip

# Options that are left out where they have these values, which change nothing. A result keeps its
# identity when such an option is added.
_SILENT = {
    "alum-method": "regularize",
    "alum-start": "normal",
    "alum-objective": "divergence",
    "alum-sides": "both",
    "alum-proximal": 0,
    "alum-layer": 0,
    "alum-warmup-updates": 0,
    "alum-fraction": 1,
}


def resolved(options: Options, pretraining: bool) -> dict[str, Any]:
    """ALUM options with the preset's values filled in; of plain training, only that it is plain.

    As the first results have them: no step is the ascent "random", and a site below "layer N".
    """
    if options.get("alum-alpha") == 0:
        return {"alum-alpha": 0}
    preset = get_preset(options.get("alum-preset", "calibrated"))
    values = vars(preset) | vars(preset.adversary)
    found = {f"alum-{name.replace('_', '-')}": values[name] for name in _FIELDS}
    found["alum-alpha"] = preset.pretraining_alpha if pretraining else preset.finetuning_alpha
    if found["alum-noise-std"] is None:
        found["alum-noise-std"] = NOISE_STD  # which it is, in float32
    found |= {name: value for name, value in options.items() if name != "alum-preset"}
    found["alum-ascent"] = "power" if found["alum-steps"] else "random"
    found["alum-steps"] = max(1, found["alum-steps"])
    if found["alum-site"] != "words":
        site = found.pop("alum-site")
        found["alum-layer"] = 0 if site == "embeddings" else int(site)
    return {
        name: _number(value)
        for name, value in sorted(found.items())
        if name not in _SILENT or value != _SILENT[name]
    }


def _number(value: Any) -> Any:
    """1 and 1.0 are one value; JSON has no infinity."""
    if value == math.inf:
        return "inf"
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# -------------------------------------------------------------------------------------- the studies

PLAIN = {"alum-alpha": 0}
CALIBRATED = {"alum-preset": "calibrated"}

# Of a batch of 32, so that a thousand sentences make 32 updates an epoch. Learning rate and epochs
# are those that `tune` found good for plain training: docs/results.md, limits.
RECIPE = Recipe(rate=1e-4, epochs=6)
RECIPES_TRIED = ((1e-4, 6), (2e-4, 6), (5e-5, 6), (1e-4, 10))
CLASSIC = ("sst2", "sick-e", "sick-r", "cola")
LOW = 1000
SEEDS = (1, 2, 3, 4, 5)
EQUAL_COMPUTE = 8 / 3  # what an update with one ascent step costs

# By how much each is needed to judge the claim: the first ones first.
FINETUNING: dict[str, Options] = {
    "calibrated": CALIBRATED,
    "plain": PLAIN,
    "reference": {"alum-preset": "reference"},
    # Two passes with different dropout masks: the perturbation is far below rounding.
    "dropout-only": {"alum-steps": 0, "alum-epsilon": 1e-9, "alum-dropout": "independent"},
    "random-noise": {"alum-steps": 0},
    "paper": {"alum-preset": "paper"},
    "task-loss": {"alum-objective": "task-loss"},
    "quarter-batch": {"alum-fraction": 0.25},
    "3-steps": {"alum-steps": 3},
}
PLAIN_LONGER = "plain-longer"

# Those that are said to be best first.
METHODS: dict[str, Options] = {
    "plain": PLAIN,
    **{
        name: {"alum-preset": name}
        for name in (
            "calibrated", "freelb", "freelb++", "pgd", "vat", "fgm", "smart", "r3f",
        )
    },
}  # fmt: skip
# Plain training, and the methods that gained with three seeds: of these five, of others three.
CONTENDERS = ("plain", "calibrated", "vat", "fgm", "pgd", "freelb")
# The preset's ten steps of 0.03 were too much for SST-2 and SICK. So they are shorter, or fewer.
LESS_OF_IT: dict[str, Options] = {
    "freelb++, step 0.01": {"alum-preset": "freelb++", "alum-step-size": 0.01},
    "freelb++, 5 steps": {"alum-preset": "freelb++", "alum-steps": 5},
    "freelb++, step 0.003": {"alum-preset": "freelb++", "alum-step-size": 0.003},
}
FRACTIONS: dict[str, Options] = {
    "plain": PLAIN,
    **{f"fraction {2.0**-k:g}": {"alum-fraction": 2.0**-k} for k in (4, 0, 3, 2, 1)},
}
# `fgm` was the most accurate of the methods on a thousand examples.
SMALL: dict[str, Options] = {
    "plain": PLAIN,
    "fgm": {"alum-preset": "fgm"},
    **{
        f"epsilon {epsilon:g}, alpha {alpha:g}": {"alum-epsilon": epsilon, "alum-alpha": alpha}
        for alpha in (0.3, 1.0, 0.1)
        for epsilon in (0.01, 0.003)
    },
}
_SHORT = {"alum-steps": 10, "alum-step-size": 0.01}
CHOICES: dict[str, Options] = {
    "plain": PLAIN,
    "calibrated": CALIBRATED,
    "words": {"alum-site": "words"},
    "label": {"alum-objective": "task-loss"},
    "10 short steps": {**_SHORT, "alum-projection": "clip"},
    "10 short steps, no cap": {**_SHORT, "alum-projection": "none"},
}
FULL: dict[str, Options] = {
    "calibrated": CALIBRATED,
    "plain": PLAIN,
    "alpha-0.3": {"alum-alpha": 0.3},
    "reference": FINETUNING["reference"],
}
_ALL: dict[str, Any] = {"size": None, "recipe": replace(RECIPE, epochs=3)}

# Methods whose options are gone, and what takes their place. What was run of them, at this commit,
# stays in the results.
GONE_AT = "97b99b5"
GONE = {
    "sampled-label": "quarter-batch",
    "true-label": "task-loss",
    "every-4th": "quarter-batch",
    "3-steps-1-layer": "3-steps",
    "ascent: power": "objective: divergence",
    "ascent: sampled-label": "objective: divergence",
    "ascent: true-label": "objective: task-loss",
}

# The ball first; then, with the ball that the preset then has, one factor at a time.
BALLS = (
    ("linf", "token", "normalized", (0.1, 0.3)),
    ("linf", "token", "steepest", (0.03, 0.1, 0.3)),
    ("l2", "sentence", "normalized", (0.03, 0.1, 0.3)),
    ("l2", "token", "normalized", (0.1,)),
    ("linf", "sentence", "normalized", (0.3,)),
)
FACTORS: dict[str, list[Options]] = {
    "ball": [
        {"alum-norm": norm, "alum-norm-scope": scope, "alum-gradient": gradient,
         "alum-epsilon": epsilon, "alum-step-size": 1.0}
        for norm, scope, gradient, radii in BALLS
        for epsilon in radii
    ],
    "alpha": [{"alum-alpha": value} for value in (1.0, 3.0, 10.0, 0.3)],
    "dropout": [{"alum-dropout": value} for value in ("shared", "independent")],
    "objective": [{"alum-objective": value} for value in ("divergence", "task-loss")],
    "step": [
        {"alum-step-size": size, "alum-projection": projection}
        for size, projection in ((1.0, "rescale"), (0.1, "rescale"), (0.1, "clip"))
    ],
    "noise": [{"alum-noise-std": value} for value in (0.01, 0.001, 0.1)],
    "layer": [{"alum-site": value} for value in ("0", "1", "3")],
    # 96 updates are half of what a thousand examples give.
    "alpha, warm-up": [
        {"alum-alpha": alpha, "alum-warmup-updates": updates}
        for alpha, updates in ((1.0, 0), (3.0, 0), (3.0, 96), (1.0, 96))
    ],
}  # fmt: skip

PRETRAINING = Recipe(rate=1e-3, updates=4000, batch=16)
CONTINUAL = replace(PRETRAINING, rate=2e-4, updates=1500)
# Of the real encoder: first its head, then all of it.
HEAD = replace(PRETRAINING, updates=400)
ENCODER = replace(PRETRAINING, rate=1e-4, updates=1000)
SMALL_FINETUNING = Recipe(rate=3e-4, epochs=3)
# That of docs/spans_and_tags.md: small batches, so that few examples make many updates.
TOKENS = {
    "wnut17": Recipe(rate=3e-4, epochs=2, batch=8),
    "policyqa": Recipe(rate=3e-4, epochs=1, batch=8),
}


def compared(
    study: str,
    methods: Mapping[str, Options],
    tasks: Sequence[str],
    seeds: Sequence[int] = (1, 2, 3),
    size: int | None = LOW,
    recipe: Recipe = RECIPE,
) -> Iterator[Cell]:
    """Every method on every task, the first methods first."""
    for seed in seeds:
        for place, (method, options) in enumerate(methods.items()):
            for number, task in enumerate(tasks):
                cell = Cell(study, task, method, seed, options, recipe, size)
                yield replace(cell, study_order=(seed, place, number))


def finetuning(tasks: Sequence[str] = CLASSIC) -> Iterator[Cell]:
    """Every method on every task, on a thousand examples."""
    for cell in compared("finetuning", FINETUNING, tasks, SEEDS):
        yield cell
        if cell.method == "plain":
            seed, place, number = cell.study_order
            longer = replace(cell, method=PLAIN_LONGER, factor=EQUAL_COMPUTE)
            yield replace(longer, study_order=(seed, place, len(tasks) + number))


def methods() -> Iterator[Cell]:
    """The methods of the field side by side; of FreeLB++ also shorter and fewer steps."""
    tasks = ("sst2", "sick-e", "ag_news")
    seeds = dict.fromkeys(METHODS, 3) | dict.fromkeys(CONTENDERS, 5) | dict.fromkeys(LESS_OF_IT, 1)
    for cell in compared("methods", METHODS | LESS_OF_IT, tasks, SEEDS):
        if cell.seed <= seeds[cell.method]:
            yield cell


def price() -> Iterator[Cell]:
    """How little of a batch suffices."""
    yield from compared("price", FRACTIONS, ("sst2", "sick-e", "ag_news"))


def accuracy() -> Iterator[Cell]:
    """Small balls and weights, and `fgm`, on all examples: is one above plain training?"""
    for cell in compared("accuracy", SMALL, (*CLASSIC, "ag_news"), **_ALL):
        yield replace(cell, effort=UNATTACKED)


def site() -> Iterator[Cell]:
    """What separates ALUM from FreeLB++, one choice at a time."""
    yield from compared("site", CHOICES, ("sst2", "ag_news"))


def tune(
    tasks: Sequence[str] = ("sst2", "sick-e"), seeds: Sequence[int] = (101, 102)
) -> Iterator[Cell]:
    """Learning rate and epochs of plain training, judged on the validation split."""
    for seed in seeds:
        for place, (rate, epochs) in enumerate(RECIPES_TRIED):
            for number, task in enumerate(tasks):
                recipe = replace(RECIPE, rate=rate, epochs=epochs)
                method = f"lr {rate:g}, {epochs} epochs"
                cell = Cell("tune", task, method, seed, PLAIN, recipe, LOW, effort=NOTHING)
                yield replace(cell, study_order=(seed, place, number))


def calibrate(
    tasks: Sequence[str] = ("sst2", "sick-e", "cola"), seeds: Sequence[int] = (1, 2)
) -> Iterator[Cell]:
    """One factor of the preset at a time, in fine-tuning; then in pre-training."""
    for seed in seeds:
        for number, task in enumerate(tasks):
            plain = Cell("calibrate", task, "plain", seed, PLAIN, RECIPE, LOW)
            yield replace(plain, study_order=(seed, 0, 0, number))
            for place, (factor, options) in enumerate(_one_at_a_time()):
                cell = Cell("calibrate", task, factor, seed, options, RECIPE, LOW)
                yield replace(cell, study_order=(seed, 1, place, number))
        yield from _calibrate_pretraining(seed)


def _one_at_a_time() -> Iterator[tuple[str, Options]]:
    """Each choice, named by those of its options that differ between the choices of a factor."""
    for factor, choices in FACTORS.items():
        differing = [name for name in choices[0] if len({options[name] for options in choices}) > 1]
        for options in choices:
            values = " ".join(
                f"{options[name]:g}" if isinstance(options[name], float) else str(options[name])
                for name in differing
            )
            yield f"{factor}: {values}", options


def _calibrate_pretraining(seed: int) -> Iterator[Cell]:
    """Alpha and epsilon of continued pre-training of a small model."""
    start = _from_scratch("calibrate", seed, "scratch plain", PLAIN)
    choices = [("plain", PLAIN)]
    choices += [(f"alpha: {value:g}", {"alum-alpha": value}) for value in (1.0, 3.0, 10.0, 0.3)]
    choices += [(f"epsilon: {value:g}", {"alum-epsilon": value}) for value in (0.1, 0.3, 0.03)]
    for place, (method, options) in enumerate(choices):
        yield Cell(
            "calibrate", TEXT, method, seed, options, CONTINUAL, start=start,
            study_order=(seed, 2, place),
        )  # fmt: skip


def full() -> Iterator[Cell]:
    """All training examples: plain, the preset, its ball with less alpha, and `reference`."""
    yield from compared("full", FULL, CLASSIC, **_ALL)


def _from_scratch(
    study: str, seed: int, method: str, options: Options, factor: float = 1.0
) -> Cell:
    return Cell(study, TEXT, method, seed, options, PRETRAINING, factor=factor)


def pretraining(seeds: Sequence[int] = (1, 2, 3), text_seed: int = 1) -> Iterator[Cell]:
    """Plain and ALUM pre-training, from scratch and continued, then fine-tuning of each."""
    half = {"alum-start-update": PRETRAINING.updates // 2}
    scratch = {
        "scratch plain": (PLAIN, 1.0),
        "scratch ALUM, second half": (CALIBRATED | half, 1.0),
        "scratch ALUM": (CALIBRATED, 1.0),
        "scratch plain, equal compute": (PLAIN, (1 + EQUAL_COMPUTE) / 2),
    }
    made = [
        _from_scratch("pretraining", text_seed, name, options, factor)
        for name, (options, factor) in scratch.items()
    ]
    continued = {
        "continued plain": (PLAIN, 1.0),
        "continued ALUM": (CALIBRATED, 1.0),
        "continued plain, equal compute": (PLAIN, EQUAL_COMPUTE),
    }
    made += [
        Cell("pretraining", TEXT, name, text_seed, options, CONTINUAL, factor=factor, start=made[0])
        for name, (options, factor) in continued.items()
    ]
    for place, cell in enumerate(made):
        yield replace(cell, study_order=(0, place))
    for seed in seeds:
        for place, start in enumerate(made):
            for number, task in enumerate(("sst2", "sick-e")):
                yield Cell(
                    "pretraining", task, start.method, seed, PLAIN, SMALL_FINETUNING, start=start,
                    study_order=(seed, place, number),
                )  # fmt: skip


def encoder(seeds: Sequence[int] = (1, 2, 3), text_seed: int = 1) -> Iterator[Cell]:
    """Continued pre-training of the real encoder, plain and ALUM; then fine-tuning of each."""
    head = Cell("encoder", TEXT, "encoder head", text_seed, PLAIN, HEAD, head_only=True)
    made = {
        f"encoder {name}": Cell(
            "encoder", TEXT, f"encoder {name}", text_seed, options, ENCODER, start=head
        )
        for name, options in (("plain", PLAIN), ("ALUM", CALIBRATED))
    }
    for place, cell in enumerate((head, *made.values())):
        yield replace(cell, study_order=(0, place))
    starts: dict[str, Cell | None] = {**made, "encoder as it is": None}
    for cell in compared("encoder", dict.fromkeys(starts, PLAIN), ("sst2", "sick-e"), seeds):
        yield replace(cell, start=starts[cell.method])


def tasks() -> Iterator[Cell]:
    """Answers that are spans, and tags."""
    for task, recipe in TOKENS.items():
        both = {"plain": PLAIN, "calibrated": CALIBRATED}
        yield from compared("tasks", both, (task,), size=None, recipe=recipe)


STUDIES: dict[str, Callable[[], Iterable[Cell]]] = {
    "finetuning": finetuning,
    "calibrate": calibrate,
    "tune": tune,
    "full": full,
    "pretraining": pretraining,
    "encoder": encoder,
    "tasks": tasks,
    "methods": methods,
    "price": price,
    "accuracy": accuracy,
    "site": site,
}


def choose(cells: Iterable[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Those that a pattern names, the first pattern's first, then the most informative first.

    Args:
        cells: to choose from.
        patterns: a study, or ``STUDY/TASK/METHOD/SEED`` with ``*`` for any, whose end may be left
            out.

    Raises:
        UsageError: a pattern names nothing.
    """
    left, chosen = list(cells), []
    for pattern in patterns:
        found = [cell for cell in left if is_named(cell.name, pattern)]
        if not found and not any(is_named(cell.name, pattern) for cell in chosen):
            raise UsageError(f"--cells {pattern}: {_why_none(pattern)}")
        chosen += sorted(found, key=lambda cell: cell.study_order)
        left = [cell for cell in left if cell not in found]
    return chosen


def is_named(name: str, pattern: str) -> bool:
    """Whether a pattern, as :func:`choose` takes them, names a cell."""
    parts = pattern.split("/")
    return fnmatch.fnmatchcase(name, "/".join([*parts, *["*"] * (4 - len(parts))]))


def _why_none(pattern: str) -> str:
    for method, successor in GONE.items():
        if method in pattern.split("/"):
            return f"{method} was run at {GONE_AT}, and its options are gone: take {successor}"
    return "there is no such cell; --list shows what there is"


def updates_of(cell: Cell, rows: int) -> int:
    """How many updates it trains for.

    Args:
        cell: of fine-tuning or pre-training.
        rows: how many training examples there are.
    """
    if cell.pretrains:
        return round(cell.recipe.updates * cell.factor)
    return round(math.ceil(rows / cell.recipe.batch) * cell.recipe.epochs * cell.factor)
