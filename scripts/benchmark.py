"""What each way of training with ALUM costs, and how adversarial it is, beside stock fairseq.

    python scripts/benchmark.py                       a small model on a CPU, a few minutes
    python scripts/benchmark.py --size 6x512          the shape of docs/cost.md; an hour
    python scripts/benchmark.py --size base --precision fp32 bf16 fp16      on a GPU

Trains a masked language model and a classifier with stock fairseq's criteria for some updates (a
random network has no adversarial directions to speak of), or takes a checkpoint. Then it runs
single updates (forward and backward pass) of stock fairseq and of every mode on the
same model and the same batch, in turns, and prints for each mode, as ratios to stock:

    FLOPs    floating-point operations, by torch's counter
    time     median and quartiles over the rounds of (time of the mode / mean time of the stock
             updates just before and after it); stock's own line shows the noise. On a GPU by its
             own clock. Memory that is freed is kept for the next turn
    memory   peak of what tensors hold: parameters (of SMART's momentum model, too), gradients,
             activations. On a GPU by torch's counter of its allocator
    waits    how often the host waits for the GPU in an update (on a GPU alone; not a ratio)
    gain     divergence under the perturbation / under a random one of equal length (not a ratio to
             stock), on held-out text without dropout
    KL       that divergence, nats per prediction (squared error has no part in this)

``--optimizer`` makes whole updates: with unscaling, clipping and the step of fairseq's Adam, and
what it keeps in memory. ``--compile`` takes stock fairseq once more with the encoder's layers
compiled by ``torch.compile``. ``--json`` writes all numbers, with the machine and the versions.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler talks on every use

import argparse
import copy
import ctypes
import gc
import inspect
import json
import logging
import platform
import random
import re
import statistics
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import fairseq
import torch
from fairseq import optim
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.roberta import RobertaModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from tqdm import tqdm

from alum_fairseq import cli
from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.criterions.alum_sentence_prediction import (
    AlumSentencePrediction,
    AlumSentencePredictionConfig,
)
from alum_fairseq.encoder.tap import sentence_encoder
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, existing_folder, whole_file
from alum_fairseq.tasks.loss_scale import loss_scale_of


@dataclass(frozen=True)
class Precision:
    """As an option of fairseq-train sets it: in what the weights are, in what autocast computes."""

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by before its backward pass."""
        return LOSS_SCALE if torch.float16 in (self.weights, self.autocast) else 1.0


PRECISIONS = {
    "fp32": Precision(),
    "fp16": Precision(weights=torch.float16),
    "bf16": Precision(weights=torch.bfloat16),
    "amp": Precision(autocast=torch.float16),
}


@dataclass(frozen=True)
class Size:
    """A model, and a batch for it."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    batch: int
    tokens: int
    train_updates: int


SIZES = {
    "tiny": Size(3, 32, 4, 600, 8, 32, 100),
    "small": Size(4, 128, 4, 5000, 8, 128, 300),
    "6x512": Size(6, 512, 8, 50265, 8, 256, 150),
    "base": Size(12, 768, 12, 50265, 8, 512, 150),
}

# A word between the two that mark begin and end; a word beside the special ones, and <mask>.
LEAST = {"tokens": 3, "vocabulary": 6}

# Options of the criterion; None is stock fairseq.
MODES: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "exact": {},
    "random": {"alum_steps": 0},
    "low memory": {"alum_memory": "low"},
    "a quarter of the batch": {"alum_fraction": 0.25},
    "K=2": {"alum_steps": 2},
    "K=3": {"alum_steps": 3},
    **{
        name: {"alum_preset": name}
        for name in ("vat", "r3f", "smart", "fgm", "pgd", "freelb", "freelb++")
    },
}

TASKS = ("masked_lm", "sentence_prediction")
CLASSES = 8
HEAD = "sentence_classification_head"
LOSS_SCALE = 2.0**10  # for float16; exact, and out of what is reported
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

Batch = dict[str, Any]


# Text, as one long stream of words.


def words_of_the_python_manual(vocabulary: int) -> tuple[Dictionary, Tensor]:
    """Real English that every Python has; the dictionary is filled up to the size asked for."""
    words = re.findall(
        r"[a-z]+|[.,;:()]", " ".join(topics[name] for name in sorted(topics)).lower()
    )
    dictionary = Dictionary()
    for word in words:
        dictionary.add_symbol(word)
    room = vocabulary - dictionary.nspecial - 1
    dictionary.finalize(nwords=min(room, len(dictionary) - dictionary.nspecial), padding_factor=1)
    for number in range(vocabulary - 1 - len(dictionary)):
        dictionary.add_symbol(f"unused{number}")
    dictionary.add_symbol("<mask>")
    return dictionary, torch.tensor([dictionary.index(word) for word in words])


def words_of(data: Path, dictionary: Dictionary) -> Tensor:
    """The validation split of a binarised corpus.

    Raises:
        UsageError: there is none.
    """
    lines = data_utils.load_indexed_dataset(str(data / "valid"), dictionary)
    if lines is None:
        raise UsageError(f"{data} has no split 'valid', as fairseq-preprocess writes it")
    return torch.cat([lines[i] for i in range(len(lines))]).long()


class Batches:
    """Batches of one size from a stream of words, for both tasks."""

    def __init__(self, words: Tensor, dictionary: Dictionary, batch: int, tokens: int) -> None:
        if len(words) < 4 * tokens:
            raise UsageError(f"the text has {len(words)} words: too few for {tokens} tokens")
        self.words, self.dictionary, self.batch, self.tokens = words, dictionary, batch, tokens

    def of(self, task: str, seed: int, held_out: bool = False) -> Batch:
        """A batch of this task; the last tenth of the text is held out."""
        generator = torch.Generator().manual_seed(seed)
        length, cut = self.tokens - 2, len(self.words) * 9 // 10
        low, high = (cut, len(self.words) - length) if held_out else (0, cut - length)
        starts = torch.randint(low, max(high, low + 1), (self.batch,), generator=generator)
        rows = [self.words[start : start + length] for start in starts.tolist()]
        edge = torch.ones(len(rows), 1, dtype=torch.long)
        tokens = torch.cat(
            [edge * self.dictionary.bos(), torch.stack(rows), edge * self.dictionary.eos()], dim=1
        )
        if task == "masked_lm":
            tokens, target = self._masked(tokens, generator)
        else:
            # Which part of the text is this from? Parts alternate, so that none is held out.
            target = starts // (20 * length) % CLASSES
        return {
            "id": torch.arange(self.batch),
            "net_input": {
                "src_tokens": tokens,
                "src_lengths": torch.full((self.batch,), tokens.size(1)),
            },
            "target": target,
            "nsentences": self.batch,
            "ntokens": tokens.numel(),
        }

    def _masked(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """RoBERTa's masking: 15% of the words, of these 80% a mask, 10% another word."""
        chosen = torch.rand(tokens.shape, generator=generator) < 0.15
        chosen[:, [0, -1]] = False
        target = tokens.masked_fill(~chosen, self.dictionary.pad())
        how = torch.rand(tokens.shape, generator=generator)
        others = self.words[torch.randint(len(self.words), tokens.shape, generator=generator)]
        masked = torch.where(chosen & (how < 0.8), self.dictionary.index("<mask>"), tokens)
        return torch.where(chosen & (how >= 0.9), others, masked), target


# Models and criteria.


def build_model(size: Size, dictionary: Dictionary) -> RobertaModel:
    """An untrained RoBERTa with a classification head, by fairseq itself."""
    args = Namespace(
        encoder_layers=size.layers,
        encoder_embed_dim=size.width,
        encoder_ffn_embed_dim=4 * size.width,
        encoder_attention_heads=size.heads,
        max_positions=size.tokens,
    )
    return RobertaModel.build_model(args, _task(dictionary))


def _task(dictionary: Dictionary) -> SimpleNamespace:
    """As much of a fairseq task as models and criteria look at."""
    return SimpleNamespace(
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        label_dictionary=dictionary,
        max_positions=lambda: None,
        cfg=Namespace(_name="masked_lm"),
        passes_update_number=True,
        passes_ema_model=True,
    )


def build_criterion(task: str, dictionary: Dictionary, options: dict[str, Any] | None) -> Any:
    """A criterion of this task: stock fairseq's for None, else ours with these options."""
    if task == "masked_lm":
        stock, ours, cfg, alum_cfg = MaskedLmLoss, AlumMlm, MaskedLmConfig, AlumMlmConfig
        given: dict[str, Any] = {"tpu": False}
    else:
        stock, ours = SentencePredictionCriterion, AlumSentencePrediction
        cfg, alum_cfg = SentencePredictionConfig, AlumSentencePredictionConfig
        given = {"classification_head_name": HEAD, "regression_target": False}
    if options is None:
        return stock(cfg(**given), _task(dictionary))
    return ours(alum_cfg(**given, **{"alum_log_gain_interval": 0, **options}), _task(dictionary))


def build_optimizer(model: nn.Module, precision: str) -> Any:
    """Adam as fairseq's trainer builds it for a precision, at a rate that changes nothing."""
    words = ["data", "--task", "masked_lm", "--criterion", "masked_lm", "--arch", "roberta"]
    words += ["--optimizer", "adam", "--lr", "0", "--fp16-init-scale", str(int(LOSS_SCALE))]
    words += [] if precision == "fp32" else [f"--{precision}"]
    # One tensor of all gradients is for GPUs alone.
    words += [] if next(model.parameters()).is_cuda else ["--fp16-no-flatten-grads"]
    args = fairseq.options.parse_args_and_arch(fairseq.options.get_training_parser(), words)
    cfg = convert_namespace_to_omegaconf(args)
    parameters = list(model.parameters())
    if precision == "fp32":
        return optim.build_optimizer(cfg.optimizer, parameters)
    kind = optim.AMPOptimizer if precision == "amp" else optim.FP16Optimizer
    return kind.build_optimizer(cfg, parameters)


def train(model: nn.Module, task: str, batches: Batches, updates: int, move: Callable) -> float:
    """Train with stock fairseq's criterion; returns the mean loss of the last tenth, in bits."""
    criterion = build_criterion(task, batches.dictionary, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02 / model.args.encoder_embed_dim)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=max(updates, 2)
    )
    model.train()
    losses = [float("nan")]
    for update in tqdm(range(updates), desc=f"training {task}", leave=False, disable=None):
        loss, size, _ = criterion(model, move(batches.of(task, update)))
        (loss / size).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(float(loss.detach() / size) / 0.6931471805599453)
    return statistics.fmean(losses[-max(updates // 10, 1) :])


# Measurements.


class Mode:
    """One way of training, ready to run updates."""

    def __init__(
        self,
        model: nn.Module,
        task: str,
        dictionary: Dictionary,
        options: dict[str, Any] | None,
        precision: Precision,
        optimizer: Any = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.task, self.dictionary, self.options = model, task, dictionary, options
        self.precision, self.optimizer, self.compiled = precision, optimizer, compiled
        self.criterion = build_criterion(task, dictionary, options)
        self.ema_model = None
        if options is not None and self.criterion.preset.proximal > 0:
            self.ema_model = copy.deepcopy(model).requires_grad_(False)

    @property
    def held(self) -> int:
        """Bytes that stay: the parameters, a momentum model's, what the optimizer keeps."""
        models = [self.model] if self.ema_model is None else [self.model, self.ema_model]
        tensors = [p for model in models for p in model.parameters()]
        if self.optimizer is not None:
            adam = self.optimizer.optimizer
            tensors += [value for state in adam.state.values() for value in state.values()]
            for parameter in (p for group in adam.param_groups for p in group["params"]):
                tensors += [t for t in (parameter, parameter.grad) if t is not None]
        unique = {t.data_ptr(): t for t in tensors if isinstance(t, Tensor)}
        return sum(t.numel() * t.element_size() for t in unique.values())

    def update(self, batch: Batch, eager: bool = False) -> None:
        """Forward and backward pass, and the optimizer's step where there is one.

        Args:
            batch: of the update.
            eager: without torch.compile, whose kernels torch's counter of FLOPs does not see.
        """
        self.model.train()
        compile_layers(self.model, self.compiled and not eager)
        scale = self.precision.loss_scale
        if self.optimizer is not None:
            scale = loss_scale_of(self.optimizer)
        torch.manual_seed(0)
        if self.options is not None:
            self.criterion.prepare_update(0, scale, self.ema_model)
        with self._autocast(batch):
            loss, size, _ = self.criterion(self.model, batch)
        if self.optimizer is None:
            (loss * scale).backward()
            self.model.zero_grad(set_to_none=True)
            return
        self.optimizer.backward(loss)
        self.optimizer.multiply_grads(1 / size)
        # As in fairseq's trainer: where the scale was too large it is smaller from the next on.
        with suppress(OverflowError):
            self.optimizer.clip_grad_norm(1.0)
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _autocast(self, batch: Batch) -> torch.autocast:
        dtype = self.precision.autocast
        return torch.autocast(batch["target"].device.type, dtype, enabled=dtype is not None)

    def adversarial(self, batches: list[Batch]) -> dict[str, float]:
        """The divergence reached, and the gain, without dropout."""
        if self.options is None:
            return {}
        options = self.options | {"alum_validate": True, "alum_log_gain_interval": 1}
        criterion = build_criterion(self.task, self.dictionary, options)
        self.model.eval()
        compile_layers(self.model, False)
        found = by_chance = predictions = 0.0
        with torch.no_grad():
            for batch in batches:
                with self._autocast(batch):
                    log = criterion(self.model, batch)[2]
                found += float(log["_alum_gain_adversarial"])
                by_chance += float(log["_alum_gain_random"])
                predictions += float(log["_alum_sample_size"])
        return {
            "gain": found / by_chance if by_chance > 0 else float("nan"),
            "divergence": found / max(predictions, 1.0),
        }


def compile_layers(model: nn.Module, on: bool) -> None:
    """Run the encoder's layers as torch.compile makes them, or as they are.

    Each by itself: fairseq's encoder decides by its values whether there is padding, which ends a
    graph.
    """
    for layer in sentence_encoder(model).layers:
        if on:
            layer.compile()  # compiled again, it is found among what has been compiled
        else:
            layer._compiled_call_impl = None


def count_flops(run: Callable[[], None]) -> int:
    """Floating-point operations of matrix products, attention included."""
    # torch counts its fused attention on GPUs, not that on CPUs. What its counter wraps once more
    # must not be wrapped.
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: inspect.unwrap(sdpa_flop),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: inspect.unwrap(
            sdpa_backward_flop
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(held: int, run: Callable[[], None], cuda: bool) -> int:
    """The most bytes that tensors held at once, with those that were held before."""
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before + held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = held
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def host_waits(run: Callable[[], None]) -> int:
    """How often the host waits for the GPU, as torch tells; copies of single numbers among it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in said)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, instead of giving it back to the system.

    A mode that needs much memory would else hand it back after each turn and fault it in again page
    by page at the next, a fifth of its time, while the smaller ones would find theirs in place.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def seconds(run: Callable[[], None], cuda: bool) -> float:
    """How long it takes."""
    if cuda:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        run()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) / 1000
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(
    modes: dict[str, Mode], batch: Batch, held_out: list[Batch], rounds: int, seed: int
) -> dict[str, dict[str, float]]:
    """Every mode on the same batch, in turns."""
    cuda = batch["target"].is_cuda
    run = {name: (lambda mode=mode: mode.update(batch)) for name, mode in modes.items()}
    results: dict[str, dict[str, float]] = {}
    for name, mode in tqdm(modes.items(), desc="FLOPs, memory, gain", leave=False, disable=None):
        run[name]()  # warm-up
        results[name] = {
            "flops": count_flops(lambda mode=mode: mode.update(batch, eager=True)),
            "memory": peak_memory(mode.held, run[name], cuda),
            **({"host_waits": host_waits(run[name])} if cuda else {}),
            **mode.adversarial(held_out),
        }
    for result in results.values():
        result |= {
            "flops_ratio": result["flops"] / results["stock"]["flops"],
            "memory_ratio": result["memory"] / results["stock"]["memory"],
        }
    if rounds:
        for name, times in compare_times(run, rounds, seed, cuda).items():
            results[name] |= times
    return results


def compare_times(
    run: dict[str, Callable[[], None]],
    rounds: int,
    seed: int,
    cuda: bool,
) -> dict[str, dict[str, float]]:
    """Time an update of every mode, and of stock just before and after it.

    Other machines on the same processor make ours faster and slower within seconds: only
    neighbours can be compared.

    Args:
        run: what to time, with ``"stock"`` among it.
        rounds: how often each is timed.
        seed: of their order, which is another in every round.
        cuda: whether to wait for a GPU.

    Returns:
        For each: median ``seconds`` an update, ``time_ratio`` to stock and its quartiles.
    """
    times: dict[str, list[float]] = {name: [] for name in run}
    ratios: dict[str, list[float]] = {name: [] for name in run}
    order = list(run)
    shuffled = random.Random(seed)
    gc.collect()
    gc.freeze()  # else Python goes through all libraries' objects in the middle of a turn
    for _ in tqdm(range(rounds), desc="time", leave=False, disable=None):
        shuffled.shuffle(order)
        before = seconds(run["stock"], cuda)
        for name in order:
            mine = seconds(run[name], cuda)
            after = seconds(run["stock"], cuda)
            times[name].append(mine)
            ratios[name].append(2 * mine / (before + after))
            before = after
    gc.unfreeze()
    compared = {}
    for name in run:
        ordered = sorted(ratios[name])
        compared[name] = {
            "seconds": statistics.median(times[name]),
            "time_ratio": statistics.median(ordered),
            "time_ratio_low": ordered[len(ordered) // 4],
            "time_ratio_high": ordered[-1 - len(ordered) // 4],
        }
    return compared


# The command.


def table(results: dict[str, dict[str, float]]) -> Iterator[str]:
    """Rows for people."""
    waits = "host_waits" in results["stock"]
    heads = f"{'FLOPs':>6} {'time':>6} {'(quartiles)':>12} {'memory':>7} {'gain':>8} {'KL':>9}"
    heads += f" {'waits':>6}" * waits
    yield f"{'mode':28} {heads}"
    for name, r in results.items():
        timed = f"{'':6} {'':12}"
        if "time_ratio" in r:
            spread = f"{r['time_ratio_low']:.2f}-{r['time_ratio_high']:.2f}"
            timed = f"{r['time_ratio']:6.2f} {spread:>12}"
        adversarial = f"{r['gain']:8.1f} {r['divergence']:9.2g}" if "gain" in r else f"{'':18}"
        waited = f" {r['host_waits']:6d}" if waits else ""
        yield (
            f"{name:28} {r['flops_ratio']:6.2f} {timed} {r['memory_ratio']:7.2f} {adversarial}"
            + waited
        ).rstrip()
    stock = results["stock"]
    yield (
        f"stock, an update: {stock['flops'] / 1e9:.3g} GFLOP, {stock['memory'] / 2**20:.0f} MiB"
        + (f", {stock['seconds']:.3g} s" if "seconds" in stock else "")
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Size]:
    """The options, and the size that they make up.

    Raises:
        UsageError: they do not fit together.
    """
    parser = cli.make_parser("benchmark.py", __doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="model and batch (small)")
    for name in Size.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the size's")
    parser.add_argument("--checkpoint", type=Path, help="take this model; needs --data, too")
    parser.add_argument("--data", type=Path, help="binarised corpus with a split 'valid'")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="(both)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="(all)")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=["fp32"],
        help="as fairseq-train's options of these names have it (fp32)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timings of every mode; 0: none (7)")
    parser.add_argument("--preset", default="calibrated", help="ALUM's preset (calibrated)")
    parser.add_argument(
        "--optimizer", action="store_true", help="updates with fairseq's Adam, at a rate of 0"
    )
    parser.add_argument(
        "--compile", action="store_true", help="stock with torch.compile as well: a minute more"
    )
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args(arguments)
    if (options.checkpoint is None) != (options.data is None):
        raise UsageError(
            "--checkpoint and --data go together: the model, and text in its vocabulary"
        )
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no folder {options.json.parent}")
    if options.rounds < 0:
        raise UsageError(f"--rounds is {options.rounds}: it must be 0 (no timings) or more")
    chosen = {
        name: getattr(options, name) if getattr(options, name) is not None else value
        for name, value in asdict(SIZES[options.size]).items()
    }
    options.modes = ["stock", *(name for name in options.modes if name != "stock")]
    for name, value in chosen.items():
        if value < (0 if name == "train_updates" else 1):
            raise UsageError(f"--{name.replace('_', '-')} is {value}: it must be 1 or more")
    if chosen["width"] % chosen["heads"]:
        raise UsageError(
            f"--heads is {chosen['heads']}: it must divide the width, {chosen['width']}"
        )
    for name, least in LEAST.items():
        if chosen[name] < least:
            raise UsageError(f"--{name} is {chosen[name]}: it must be {least} or more")
    for name in options.modes:
        # The part is rounded at random, and here always alike: it must come out.
        part = chosen["batch"] * (MODES[name] or {}).get("alum_fraction", 1)
        if part != round(part):
            raise UsageError(
                f"--batch is {chosen['batch']}: the mode '{name}' needs a multiple of 4"
            )
    return options, Size(**chosen)


def prepare(options: argparse.Namespace, size: Size) -> tuple[nn.Module, Batches]:
    """The model, untrained or as the checkpoint has it, and the text."""
    if options.checkpoint is None:
        dictionary, words = words_of_the_python_manual(size.vocabulary)
        model = build_model(size, dictionary)
    else:
        checkpoint = Checkpoint(existing_file(options.checkpoint), existing_folder(options.data))
        model, dictionary = checkpoint.model, checkpoint.dictionary
        words = words_of(options.data, dictionary)
    if size.tokens > model.max_positions():
        raise UsageError(
            f"--tokens is {size.tokens}, but the model has {model.max_positions()} positions"
        )
    model.register_classification_head(HEAD, num_classes=CLASSES)
    return model, Batches(words, dictionary, size.batch, size.tokens)


def size_of(model: nn.Module, size: Size) -> Size:
    """The size with what the model says of itself, which may come from a checkpoint."""
    encoder = sentence_encoder(model)
    vocabulary, width = encoder.embed_tokens.weight.shape
    return replace(
        size,
        layers=len(encoder.layers),
        width=width,
        heads=encoder.layers[0].self_attn.num_heads,
        vocabulary=vocabulary,
    )


def build_modes(
    options: argparse.Namespace,
    model: nn.Module,
    task: str,
    dictionary: Dictionary,
    precision: Precision,
    optimizer: Any = None,
) -> dict[str, Mode]:
    """What is to be measured.

    Raises:
        UsageError: the model or the preset does not go with a mode.
    """
    modes = {}
    for name in options.modes:
        chosen = MODES[name]
        if chosen is not None:
            chosen = {"alum_preset": options.preset, **chosen}
        try:
            modes[name] = Mode(model, task, dictionary, chosen, precision, optimizer)
        except UsageError as error:
            raise UsageError(f"the mode '{name}': {error}") from None
    if options.compile:
        modes["stock, compiled"] = Mode(model, task, dictionary, None, precision, optimizer, True)
    return modes


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _main(argv: list[str]) -> None:
    options, size = parse(argv)
    logger = logging.getLogger("alum_fairseq")
    before = logger.level
    logger.setLevel(logging.WARNING)  # every criterion says what it is set to: here the table does
    logging.getLogger("filelock").setLevel(logging.WARNING)  # torch.compile's; fairseq shows it all
    try:
        _measure_all(options, size)
    finally:
        logger.setLevel(before)


def _measure_all(options: argparse.Namespace, size: Size) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: move(entry) for name, entry in value.items()}
        return value.to(device) if isinstance(value, Tensor) else value

    keep_freed_memory()
    torch.manual_seed(options.seed)
    model, batches = prepare(options, size)
    model.to(device)
    size = size_of(model, size)
    report = {"machine": machine(device), "size": asdict(size), "seed": options.seed, "results": {}}
    print(json.dumps(report["machine"] | {"size": asdict(size)}), flush=True)
    for task in options.tasks:
        build_modes(options, model, task, batches.dictionary, Precision())  # refuses early
        if options.checkpoint is None or task == "sentence_prediction":
            loss = train(model, task, batches, size.train_updates, move)
            print(f"\n{task}: trained for {size.train_updates} updates to {loss:.2f} bits")
        batch = move(batches.of(task, seed=10**6))
        held_out = [move(batches.of(task, 10**6 + i, held_out=True)) for i in range(1, 3)]
        for precision in options.precision:
            chosen = PRECISIONS[precision]
            cast = copy.deepcopy(model).to(chosen.weights)
            optimizer = build_optimizer(cast, precision) if options.optimizer else None
            modes = build_modes(options, cast, task, batches.dictionary, chosen, optimizer)
            results = measure(modes, batch, held_out, options.rounds, options.seed)
            report["results"].setdefault(task, {})[precision] = results
            print(f"\n{task}, {precision}, ratios to stock fairseq")
            print("\n".join(table(results)), flush=True)
            if options.json:  # after each, so that stopping it loses only what is under way
                with whole_file(options.json) as aside:
                    aside.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
