"""What all ALUM criteria share: the clean pass, the adversary, the regulariser, the metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from fairseq import utils
from fairseq.logging import metrics
from fairseq.logging.meters import AverageMeter, ConcatTensorMeter, Meter, MetersDict
from torch import Tensor, distributed, nn

from alum_fairseq.adversarial.adversary import computed_in
from alum_fairseq.adversarial.deferred import deferred
from alum_fairseq.criterions.batches import merge_logs, split_rows
from alum_fairseq.criterions.options import PRECISIONS, AlumConfig, AlumSettings, Stage
from alum_fairseq.encoder.tap import (
    EncoderTap,
    check_low_memory,
    shown_to_wrappers,
    the_only_output,
    unchanging,
    unwrap,
)
from alum_fairseq.errors import UsageError

logger = logging.getLogger(__name__)

# Logging outputs are summed over batches and workers, so only sums are logged. Every batch logs
# all of them, as tensors on one device: fairseq's fast synchronisation demands that workers agree.
_SUMS = (
    "_alum_loss",  # regulariser, before alpha
    "_alum_sample_size",  # predictions in batches whose regulariser counts
    "_alum_norm",  # mean norm of the perturbation
    "_alum_batches",  # batches whose regulariser counts
    "_alum_attempts",  # batches that were attacked
    "_alum_skipped",  # batches whose regulariser was dropped
    "_alum_gain_adversarial",  # divergence found, where the gain was measured
    "_alum_gain_random",  # divergence of a random direction there
    "_alum_gain_measured",  # batches where it was
)
_UNDER_ATTACK = "_alum_attacked_"

# A gain is called low when the sum of this many measurements stays below this value.
LOW_GAIN = 2.0
LOW_GAIN_MEASUREMENTS = 20


Output = tuple[Tensor, Tensor | int, dict[str, Any]]


@dataclass(frozen=True)
class _Attack:
    """What came of attacking a batch.

    Attributes:
        output: the loss, regulariser included in training, the sample size and the logging outputs.
        delta: the perturbation; None where the regulariser was dropped.
        adversarial: the logits under it, detached.
        regularizer: summed over the predictions, before alpha, detached.
    """

    output: Output
    delta: Tensor | None = None
    adversarial: Tensor | None = None
    regularizer: Tensor | None = None


class AlumCriterion:
    """Mixin that adds ALUM to a fairseq criterion.

    Put it before the criterion among the bases. The criterion itself is not changed: its forward
    pass is the clean pass, and its metrics keep their names and values. What is optimised is
    ``loss + alpha * regulariser``, both summed over the predictions; ``loss`` is logged as fairseq
    logs it, the regulariser as ``adv_loss``. With alpha 0 the criterion is the one it extends.
    """

    stage: Stage
    tasks: tuple[type, ...]  # fairseq's, whose batches it can train on

    def __init__(self, cfg: AlumConfig, task: Any) -> None:
        self._refuse_other_tasks(task)
        super().__init__(cfg, task)
        self._numbers = self.predicts_numbers(cfg)
        self.alum = AlumSettings.resolve(cfg, self.stage, self._numbers)
        self._told_updates = getattr(task, "passes_update_number", False)
        if self.alum.scheduled and not self._told_updates:
            name = getattr(task.cfg, "_name", None) or type(task).__name__
            raise UsageError(
                f"{self.alum.scheduled[0]} needs the number of the update, which --task {name} "
                f"does not pass on: use --task alum_{name}"
            )
        self.num_updates = 0
        self._gains_measured: int | None = None
        self._gains: list[tuple[float, float]] = []
        self._warned = False
        self._start_looked_at = False
        self._model_looked_at = False
        logger.info("ALUM: %s", self.alum)

    def _refuse_other_tasks(self, task: Any) -> None:
        """Of fairseq's tasks and ours; whoever writes one of their own knows what they do."""
        known = type(task).__module__.startswith(("fairseq.", "alum_fairseq."))
        if known and not isinstance(task, self.tasks):
            kind = type(self).__module__.rpartition(".")[2]
            remedy = "alum_masked_lm" if kind == "alum_mlm" else kind
            raise UsageError(
                f"--criterion {kind} cannot train on the batches of --task "
                f"{getattr(task.cfg, '_name', type(task).__name__)}: use "
                f"--task {remedy}"
            )

    @classmethod
    def predicts_numbers(cls, cfg: AlumConfig) -> bool:
        """Whether the model's output is a number (regression), not a distribution."""
        return False

    def combine(self, outputs: list[Tensor]) -> Tensor:
        """The logits of a prediction, of what the model returned in the calls for one batch."""
        return the_only_output(outputs)

    def prediction_weights(self, sample: dict[str, Any], logits: Tensor) -> Tensor | None:
        """Weights of the predictions in the divergence, where not all of them count."""
        return None

    def prediction_labels(self, sample: dict[str, Any], logits: Tensor) -> Tensor:
        """The label of every prediction; for regression, the number."""
        return sample["target"].view(logits.shape[:1] if not self._numbers else logits.shape)

    def silently(self) -> AbstractContextManager[None]:
        """Inside, a second pass for a batch leaves no traces but its logging outputs."""
        return nullcontext()

    def without_penalties(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, a pass adds nothing to the loss but that of its predictions."""
        return nullcontext()

    def set_num_updates(self, num_updates: int) -> None:
        """Tell the schedule where training is; called by the ALUM tasks before every batch."""
        self.num_updates = num_updates

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> Output:
        """Compute the loss of a batch: the extended criterion's, plus the regulariser.

        Returns:
            The loss, the sample size and the logging outputs, as fairseq's criteria do.
        """
        training = model.training
        self._look_at(model)
        if training and self._gains_measured is None:
            # What was due before this process began is not made up.
            self._gains_measured = self.alum.gain_measurements_before(self.num_updates)
        alpha = self.alum.alpha_at(self.num_updates) if training else 0.0
        if alpha > 0 or (self.alum.validate and not training):
            if training and self.alum.fraction < 1:
                output = self._forward_in_part(model, sample, reduce, alpha)
            else:
                output = self._forward_with_adversary(model, sample, reduce, alpha)
        else:
            output = self._forward_plainly(model, sample, reduce)
        if training and not self._told_updates:
            self.num_updates += 1
        return output

    def _look_at(self, model: nn.Module) -> None:
        """Refuse a model whose type the ascent's does not go with, before the first update."""
        if self._model_looked_at:
            return
        self._model_looked_at = True
        own, name = next(model.parameters()).dtype, self.alum.ascent_precision
        # Autocast takes no half type to another: only float32.
        if PRECISIONS[name] and own not in (PRECISIONS[name], torch.float32):
            raise UsageError(
                f"--alum-ascent-precision is {name}, but the model itself is "
                f"{str(own).removeprefix('torch.')}: leave it away (same)"
            )

    def _forward_plainly(self, model: nn.Module, sample: dict[str, Any], reduce: bool) -> Output:
        loss, sample_size, logging_output = super().forward(model, sample, reduce)
        logging_output.update(_sums(loss.device))
        return loss, sample_size, logging_output

    def _forward_in_part(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool, alpha: float
    ) -> Output:
        """With the adversary for a random part of the batch, plainly for the rest.

        Every sequence is in the part with probability ``fraction``, so ``1 / fraction`` times its
        regulariser is right on average.
        """
        fraction, sentences = self.alum.fraction, sample["nsentences"]
        count = int(fraction * sentences + torch.rand(()).item())
        part, rest = split_rows(sample, torch.randperm(sentences)[:count])
        outputs = []
        if count > 0:
            outputs.append(self._forward_with_adversary(model, part, reduce, alpha / fraction))
        if count < sentences:
            with ExitStack() as stack:
                if count > 0:  # what is done once an update was done with the part
                    stack.enter_context(unchanging(model))
                    stack.enter_context(self.without_penalties(model))
                outputs.append(self._forward_plainly(model, rest, reduce))
        losses, sample_sizes, logging_outputs = zip(*outputs, strict=True)
        return sum(losses), sum(sample_sizes), merge_logs(logging_outputs)

    def _forward_with_adversary(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool, alpha: float
    ) -> Output:
        training = model.training
        low_memory = training and self.alum.memory == "low"
        # In low memory a pass is made amid the backward pass, which wrappers do not stand.
        called = unwrap(model) if low_memory else model
        plain = partial(super().forward, called, sample, reduce)
        tap = EncoderTap(
            called,
            self.alum.layer,
            self.alum.dropout,
            self.combine,
            self.alum.step_layers,
            keep_masks=not low_memory,
        )
        if low_memory:
            check_low_memory(model)
        attack_with = self._attack_in_low_memory if low_memory else self._attack
        attack = attack_with(tap, sample, plain, alpha)
        loss, sample_size, logging_output = attack.output
        loss = shown_to_wrappers(model, loss) if low_memory else loss
        attacked = dict(logging_output)
        if attack.delta is None:
            sums = {"_alum_skipped": 1}
        else:
            sums = {
                "_alum_loss": attack.regularizer,
                "_alum_sample_size": sample_size,
                "_alum_norm": self.alum.adversary.mean_size(attack.delta, tap.mask),
                "_alum_batches": 1,
            }
            if self._gain_is_due(training):
                sums |= self._measure_gain(tap, sample, attack, training)
            if not training:
                # The criterion's own metrics, of the same batch, under attack.
                with tap.replaying(_perturbed(tap.embeddings, attack.delta)), self.silently():
                    attacked = plain()[2]
        if not training:
            logging_output |= {_UNDER_ATTACK + key: value for key, value in attacked.items()}
        logging_output.update(_sums(loss.device, _alum_attempts=1, **sums))
        return loss, sample_size, logging_output

    def _attack(
        self, tap: EncoderTap, sample: dict[str, Any], plain: Callable[[], Output], alpha: float
    ) -> _Attack:
        """The clean and the adversarial pass, both in the graph of the loss."""
        with tap.recording():
            loss, *rest = plain()
        delta = self._perturb(tap, sample) if tap.recorded else None
        if delta is None:
            return _Attack((loss, *rest))
        adversarial = tap.rerun(_perturbed(tap.embeddings, delta))
        if not _finite(delta, adversarial):
            return _Attack((loss, *rest))
        weights = self.prediction_weights(sample, tap.logits)
        regularizer = self.alum.adversary.measure.consistency(adversarial, tap.logits, weights)
        if tap.training:
            loss = loss + alpha * regularizer
        return _Attack((loss, *rest), delta, adversarial.detach(), regularizer.detach())

    def _attack_in_low_memory(
        self, tap: EncoderTap, sample: dict[str, Any], plain: Callable[[], Output], alpha: float
    ) -> _Attack:
        """As :meth:`_attack`, holding the activations of one pass at a time.

        The gradients of the regulariser's two sides do not pass through each other. So the clean
        pass is run without a graph and once more in the backward pass, after the adversarial
        pass has had its own and is gone. The perturbation's point of entry belongs to both: what
        the adversarial pass says of it goes on into the second clean pass.
        """
        measure = self.alum.adversary.measure
        random_state = utils.get_rng_state()
        with tap.recording(), torch.set_grad_enabled(self.alum.adversary.needs_clean_graph):
            loss, *rest = plain()
        loss = loss.detach()
        if tap.recorded and not tap.differentiable:  # the ascent has no use for the graph
            tap.release()
        delta = self._perturb(tap, sample, keep_graph=False) if tap.recorded else None
        if tap.recorded:
            tap.release()
        # Autocast may have kept weights of the pass without a graph, which have no gradient.
        torch.clear_autocast_cache()
        parameters = [p for p in tap.model.parameters() if p.requires_grad]
        attack = _Attack((loss, *rest))
        held: list[Tensor] = []  # for the backward pass, which lets go of each when it has had it
        if delta is not None:
            clean, entry = tap.logits, tap.embeddings.requires_grad_()
            with tap.fit_for_grad():
                adversarial = tap.rerun(_perturbed(entry, delta))
            if _finite(delta, adversarial):
                weights = self.prediction_weights(sample, clean)
                final = adversarial.detach()
                regularizer = measure.consistency(final, clean, weights)
                total = loss + alpha * regularizer
                attack = _Attack((total, *rest), delta, final, regularizer)
                held = [final, clean, entry, adversarial]
                del final
            del clean, entry, adversarial

        def gradients(upstream: Tensor) -> list[Tensor | None]:
            found: list[Tensor | None] = [None] * len(parameters)
            at_entry = None
            attacked = bool(held)
            if attacked:
                adversarial, entry, clean = held.pop(), held.pop(), held.pop()
                side = alpha * measure.consistency(adversarial, clean, weights)
                del adversarial, clean
                tap.forget()
                *found, at_entry = torch.autograd.grad(
                    side, [*parameters, entry], upstream, allow_unused=True
                )
                del side
            resume_at = utils.get_rng_state()
            utils.set_rng_state(random_state)
            with tap.recording(), tap.fit_for_grad(), unchanging(tap.model), self.silently():
                total = plain()[0]
            utils.set_rng_state(resume_at)
            ends, upstreams = [total], [upstream]
            if attacked:
                side = alpha * measure.consistency(held.pop(), tap.logits, weights)
                ends = [total + side]
                del side
                if tap.embeddings.requires_grad:  # what lies below is trained
                    ends.append(tap.embeddings)
                    upstreams.append(at_entry)
            tap.forget()
            more = torch.autograd.grad(ends, parameters, upstreams, allow_unused=True)
            return [_plus(a, b) for a, b in zip(found, more, strict=True)]

        total, *rest = attack.output
        return replace(attack, output=(deferred(total, gradients, parameters), *rest))

    def _perturb(self, tap: EncoderTap, sample: dict[str, Any], keep_graph: bool = True) -> Tensor:
        adversary = self.alum.adversary
        labels = None
        if adversary.ascent == "true-label":
            labels = self.prediction_labels(sample, tap.logits)
        joined = adversary.needs_clean_graph and tap.differentiable
        # In validation the same noise for every batch, so that figures of two epochs compare.
        device = tap.logits.device
        generator = _workers_own(device) if tap.training else _fixed_generator(device)
        self._warn_of_lost_start(tap)
        with tap.ascending(PRECISIONS[self.alum.ascent_precision]):
            return adversary.perturb(
                tap.network,
                tap.embeddings if joined else tap.embeddings.detach(),
                tap.logits,
                tap.mask,
                self.prediction_weights(sample, tap.logits),
                generator,
                labels=labels,
                hidden=tap.hidden,
                keep_graph=keep_graph,
            )

    def _gain_is_due(self, training: bool) -> bool:
        if not training:
            return self.alum.log_gain_interval > 0
        # Once, whatever --update-freq is; and in the next batch of which something is perturbed
        # (--alum-fraction), where nothing was when it was due.
        expected = self.alum.gain_measurements_before(self.num_updates + 1)
        due = expected > self._gains_measured
        self._gains_measured = expected
        return due

    def _measure_gain(
        self,
        tap: EncoderTap,
        sample: dict[str, Any],
        attack: _Attack,
        training: bool,
    ) -> dict[str, Any]:
        """Compare with a random direction of equal length; leaves random numbers as they were."""
        adversary = self.alum.adversary
        weights = self.prediction_weights(sample, tap.logits)
        seed = self.num_updates if training else 1
        generator = _fixed_generator(attack.delta.device, seed)
        random_state = utils.get_rng_state()
        with torch.no_grad():
            direction = adversary.random_like(attack.delta, tap.mask, generator)
            randomly = tap.rerun(_perturbed(tap.embeddings, direction))
            found = adversary.measure.total(attack.adversarial, tap.logits, weights)
            by_chance = adversary.measure.total(randomly, tap.logits, weights)
        utils.set_rng_state(random_state)
        if training:
            self._warn_of_low_gain(float(found), float(by_chance))
        return {
            "_alum_gain_adversarial": found,
            "_alum_gain_random": by_chance,
            "_alum_gain_measured": 1,
        }

    def _warn_of_lost_start(self, tap: EncoderTap) -> None:
        """Say once where the random start is rounded away before the model sees it."""
        adversary = self.alum.adversary
        if self._start_looked_at or adversary.ascent != "power" or not adversary.steps:
            return
        self._start_looked_at = True
        device = tap.embeddings.device.type
        precision = PRECISIONS[self.alum.ascent_precision]
        with torch.autocast(device, precision) if precision else nullcontext():
            survives = adversary.survives_rounding(tap.embeddings, tap.mask)
            computed = computed_in(tap.embeddings)
        if not survives:
            logger.warning(
                "ALUM: a random start of --alum-noise-std %g is rounded away in %s: the ascent "
                "begins from rounding errors. Leave --alum-noise-std to --alum-preset calibrated, "
                "or raise it.",
                adversary.start_std(tap.embeddings),
                str(computed).removeprefix("torch."),
            )

    def _warn_of_low_gain(self, found: float, by_chance: float) -> None:
        self._gains.append((found, by_chance))
        recent = self._gains[-LOW_GAIN_MEASUREMENTS:]
        self._gains = recent
        if self._warned or len(recent) < LOW_GAIN_MEASUREMENTS:
            return
        gain = _ratio(sum(pair[0] for pair in recent), sum(pair[1] for pair in recent))
        if not gain >= LOW_GAIN:  # nor where both divergences are below rounding
            self._warned = True
            logger.warning(
                "ALUM: adv_gain is %.2g over %d measurements: the perturbation is hardly better "
                "than a random one, so this is noise, not adversarial training. %s",
                gain,
                len(recent),
                self._remedy(),
            )

    def _remedy(self) -> str:
        adversary = self.alum.adversary
        if adversary.ascent == "random":
            return "--alum-ascent is random, which is noise: take power."
        if adversary.steps == 0:
            return "--alum-steps is 0: set it to 1 or more."
        if adversary.gradient == "raw":
            return (
                "Use --alum-preset calibrated, or --alum-gradient normalized with a step size "
                "of the order of epsilon."
            )
        if self.alum.dropout == "independent":
            return "Use --alum-dropout shared: the divergence is mostly that of two dropout masks."
        if adversary.ascent != "power":
            return "Use --alum-ascent power, or raise --alum-epsilon."
        return "Raise --alum-epsilon, or lower --alum-noise-std against --alum-step-size."

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the extended criterion's metrics, then ALUM's."""
        super().reduce_metrics(logging_outputs)
        total = {key: sum(log.get(key, 0) for log in logging_outputs) for key in _SUMS}
        if not total["_alum_attempts"]:
            return
        sample_size = total["_alum_sample_size"]
        if total["_alum_batches"]:
            if sample_size > 0:
                metrics.log_scalar(
                    "adv_loss",
                    total["_alum_loss"] / sample_size / math.log(2),
                    sample_size,
                    round=4,
                )
            batches = total["_alum_batches"]
            metrics.log_scalar("adv_norm", total["_alum_norm"] / batches, batches, round=5)
        metrics.log_scalar_sum("adv_skipped", total["_alum_skipped"])
        if total["_alum_gain_measured"]:
            for key in _SUMS:
                if key.startswith("_alum_gain_"):
                    metrics.log_scalar_sum(key, total[key])
            metrics.log_derived("adv_gain", _Gain())
        _log_under_attack(super().reduce_metrics, logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every logging output is a sum."""
        return True


def _sums(device: torch.device, **values: Any) -> dict[str, Tensor]:
    """All of :data:`_SUMS` as tensors on one device; those that are not given are zero."""
    return {
        key: torch.as_tensor(values.get(key, 0), dtype=torch.float32, device=device)
        for key in _SUMS
    }


def _perturbed(embeddings: Tensor, delta: Tensor) -> Tensor:
    return (embeddings + delta).to(embeddings.dtype)


def _finite(*tensors: Tensor) -> bool:
    # Asking costs the one GPU-to-host copy of an update. It is worth it: a graph that holds
    # a NaN anywhere puts NaN into the gradients, even when multiplied by zero.
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


def _fixed_generator(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _workers_own(device: torch.device) -> torch.Generator | None:
    """Random numbers that other workers of the run do not draw; None, torch's own, without others.

    fairseq seeds all workers alike at every update: torch's own are the same for all of them.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    seed = int(torch.randint(2**48, ()))  # on the CPU, so that no GPU is waited for
    return _fixed_generator(device, seed + distributed.get_rank())


def _ratio(found: float, by_chance: float) -> float:
    # Below float32's rounding a divergence may come out as zero, or less.
    return found / by_chance if by_chance > 0 else math.nan


class _Gain:
    """The gain since the meters were last reset; where none was measured since, the last known."""

    def __init__(self) -> None:
        self._last = math.nan

    def __call__(self, meters: Mapping[str, Meter]) -> float:
        if meters["_alum_gain_measured"].sum > 0:
            found, by_chance = (
                float(meters[f"_alum_gain_{kind}"].sum) for kind in ("adversarial", "random")
            )
            self._last = round(_ratio(found, by_chance), 2)
        return self._last


class _UnderAttack(Mapping[str, Meter]):
    """Meters by the names that the extended criterion gave them, of the passes under attack."""

    def __init__(self, meters: Mapping[str, Meter]) -> None:
        self._meters = meters

    def __getitem__(self, key: str) -> Meter:
        return self._meters[_attacked_name(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._meters)

    def __len__(self) -> int:
        return len(self._meters)


def _attacked_name(key: str) -> str:
    # adv_loss is the regulariser; the task's loss under attack needs another name.
    return "adv_task_loss" if key == "loss" else f"adv_{key}"


def _log_under_attack(reduce_metrics: Any, logging_outputs: list[dict[str, Any]]) -> None:
    """Log the extended criterion's metrics of the attacked passes, each with ``adv_`` before it."""
    start = len(_UNDER_ATTACK)
    attacked = [
        {key[start:]: value for key, value in log.items() if key.startswith(_UNDER_ATTACK)}
        for log in logging_outputs
    ]
    attacked = [log for log in attacked if log]
    if not attacked:
        return
    with metrics.aggregate(new_root=True) as meters:
        reduce_metrics(attacked)
    for key, meter in meters.items():
        name = _attacked_name(key)
        if isinstance(meter, MetersDict._DerivedMeter):
            fn = meter.fn
            metrics.log_derived(name, lambda all_meters, fn=fn: fn(_UnderAttack(all_meters)))
        elif isinstance(meter, ConcatTensorMeter):
            metrics.log_concat_tensor(name, meter.tensor)
        elif isinstance(meter, AverageMeter):
            metrics.log_scalar(name, meter.avg, meter.count, round=meter.round)
