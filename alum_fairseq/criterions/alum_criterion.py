"""What all ALUM criteria share: a batch of fairseq's becomes an update, and its result a loss."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn

from alum_fairseq.adversarial.method import perturbed
from alum_fairseq.adversarial.methods import build_method
from alum_fairseq.adversarial.schedule import Schedule
from alum_fairseq.criterions import metrics
from alum_fairseq.criterions.batches import merge_logs, split_rows
from alum_fairseq.criterions.checks import check_model, check_needs, check_task
from alum_fairseq.criterions.options import (
    AlumConfig,
    Stage,
    check_used,
    describe,
    named_by_option,
    resolve,
    without_effect,
)
from alum_fairseq.criterions.updates import BatchUpdate, Output
from alum_fairseq.criterions.watch import Watch
from alum_fairseq.encoder.modes import (
    non_reentrant,
    padding_asked_once,
    through_wrappers,
    unwrap,
    weights_fixed,
    with_changing_weights,
)
from alum_fairseq.encoder.tap import sentence_encoder
from alum_fairseq.errors import FieldError
from alum_fairseq.problems.problem import Problem

logger = logging.getLogger(__name__)


class AlumCriterion:
    """Mixin that adds a method of adversarial training to a fairseq criterion.

    Put it before the criterion among the bases. The criterion itself is not changed: its forward
    pass is the clean pass, and its metrics keep their names and values. ALUM optimises
    ``loss + alpha * regulariser``, both summed over the predictions; ``loss`` is logged as fairseq
    logs it, the regulariser as ``adv_loss``. With alpha 0 the criterion is the one it extends.

    Attributes:
        options: the ``--alum-*`` options as given.
        preset: what they resolve to.
        problem: what the model's logits mean.
    """

    name: str  # that it is registered by
    stage: Stage
    tasks: tuple[type, ...] = ()  # fairseq's, whose batches it can train on

    def __init__(self, cfg: AlumConfig, task: Any) -> None:
        check_task(task, self.fits(task), self.name, self.task_name)
        super().__init__(cfg, task)
        self.options, self.problem = cfg, self.problem_of(cfg)
        self.preset = resolve(cfg, self.stage, self.problem.divergence, self.problem.categorical)
        try:
            self.method = build_method(self.preset)
        except FieldError as error:
            raise named_by_option(error) from None
        check_used(cfg, self.method.unused)
        self.schedule = Schedule(
            getattr(self.preset, f"{self.stage}_alpha"),
            cfg.alum_start_update,
            cfg.alum_warmup_updates,
            cfg.alum_log_gain_interval,
        )
        self._told_updates = getattr(task, "passes_update_number", False)
        check_needs(self.preset, self.options, task, self.task_name)
        self.num_updates, self.loss_scale, self.ema_model = 0, 1.0, None
        self._gains_measured: int | None = None
        self._watch = Watch(self.preset)
        unused = self.method.unused
        logger.info("ALUM: %s", describe(cfg, self.preset, self.schedule.alpha, unused))
        for message in without_effect(cfg, self.preset):
            logger.warning("ALUM: %s", message)

    @classmethod
    def fits(cls, task: Any) -> bool:
        """Whether it can train on the batches of a task."""
        return isinstance(task, cls.tasks)

    @property
    def task_name(self) -> str:
        """The task that goes with the criterion."""
        return self.name

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients of the loss are taken before its backward pass, as half precision asks.

        They are then scaled as the optimizer scales the loss.
        """
        return self.method.accumulates or self.preset.objective == "task-loss"

    @classmethod
    def problem_of(cls, cfg: Any) -> Problem:
        """What the logits mean; for criteria to define."""
        raise NotImplementedError

    def silently(self) -> AbstractContextManager[None]:
        """Inside, a second pass for a batch leaves no traces but its logging outputs."""
        return nullcontext()

    def without_penalties(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, a pass adds nothing to the loss but that of its predictions."""
        return nullcontext()

    def prepare_update(
        self, num_updates: int, loss_scale: float = 1.0, ema_model: nn.Module | None = None
    ) -> None:
        """Say what the next batch's update is like; called by the ALUM tasks before every batch.

        Args:
            num_updates: made so far.
            loss_scale: what the optimizer multiplies the loss by before its backward pass.
            ema_model: fairseq's running mean of the model (``--store-ema``).
        """
        self.num_updates, self.loss_scale, self.ema_model = num_updates, loss_scale, ema_model

    def check_model(self, model: nn.Module) -> None:
        """Make sure that the options go with a model, before it is trained.

        Raises:
            UsageError: it is no RoBERTa, has no such layer, or cannot be run again as asked for.
        """
        check_model(self.preset, self.schedule.alpha, self.options, model)

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> Output:
        """Compute the loss of a batch: the extended criterion's, and what the method adds.

        Returns:
            The loss, the sample size and the logging outputs, as fairseq's criteria do.
        """
        if not model.training:
            self._watch.validation()
            if self.options.alum_validate:
                return self._validate_under_attack(model, sample, reduce)
            return self._forward_plainly(model, sample, reduce)
        if self._gains_measured is None:
            # What was due before this process began is not made up.
            self._gains_measured = self.schedule.gain_measurements_before(self.num_updates)
        alpha = self.schedule.alpha_at(self.num_updates)
        if alpha == 0:
            output = self._forward_plainly(model, sample, reduce)
        elif self.options.alum_fraction < 1:
            output = self._forward_in_part(model, sample, reduce, alpha)
        else:
            output = self._forward_with_adversary(model, sample, reduce, alpha)
        if not self._told_updates:
            self.num_updates += 1
        return output

    def _forward_plainly(self, model: nn.Module, sample: dict[str, Any], reduce: bool) -> Output:
        loss, sample_size, logging_output = super().forward(model, sample, reduce)
        logging_output.update(metrics.sums(loss.device))
        return loss, sample_size, logging_output

    def _forward_in_part(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool, alpha: float
    ) -> Output:
        """With the adversary for a random part of the batch, plainly for the rest.

        Every sequence is in the part with probability ``fraction``, so ``1 / fraction`` times what
        is added to its loss is right on average.
        """
        fraction, sentences = self.options.alum_fraction, sample["nsentences"]
        count = int(fraction * sentences + torch.rand(()).item())
        part, rest = split_rows(sample, torch.randperm(sentences)[:count])
        outputs = []
        if count > 0:
            outputs.append(self._forward_with_adversary(model, part, reduce, alpha / fraction))
        if count < sentences:
            with ExitStack() as stack:
                stack.enter_context(padding_asked_once(sentence_encoder(model)))
                if count > 0:  # what is done once an update was done with the part
                    stack.enter_context(weights_fixed(with_changing_weights(model)))
                    stack.enter_context(self.without_penalties(model))
                outputs.append(self._forward_plainly(model, rest, reduce))
        losses, sample_sizes, logging_outputs = zip(*outputs, strict=True)
        return sum(losses), sum(sample_sizes), merge_logs(logging_outputs)

    def _forward_with_adversary(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool, alpha: float
    ) -> Output:
        # Where gradients are taken before, or passes made amid, the backward pass, wrappers would
        # not stand it.
        bare = self.method.accumulates or self.options.alum_memory == "low"
        batch = self._batch(unwrap(model) if bare else model, sample, reduce)
        with non_reentrant(model) if self.method.accumulates else nullcontext():
            result = self.method.loss(batch.update(), alpha)
        loss = through_wrappers(model, result.loss) if bare else result.loss
        sums = batch.sums(result)
        if result.delta is not None and self._gain_is_due():
            measured = batch.gain(result, seed=self.num_updates)
            self._watch.gain(*torch.stack(measured[:2]).tolist())
            sums |= dict(zip(metrics.GAIN, measured, strict=True))
        batch.log.update(metrics.sums(loss.device, **sums))
        return loss, batch.sample_size, batch.log

    def _validate_under_attack(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool
    ) -> Output:
        """The criterion's own metrics, of the same batch, without and with the perturbation."""
        batch = self._batch(model, sample, reduce)
        result = self.method.attack(batch.update())
        sums, attacked = batch.sums(result), dict(batch.log)
        if result.delta is not None:
            if self.schedule.gain_interval > 0:
                sums |= dict(zip(metrics.GAIN, batch.gain(result, seed=1), strict=True))
            attacked = batch.log_at(perturbed(result.clean.embeddings, result.delta))
        batch.log |= {metrics.UNDER_ATTACK + key: value for key, value in attacked.items()}
        batch.log.update(metrics.sums(result.loss.device, **sums))
        return result.loss, batch.sample_size, batch.log

    def _batch(self, model: nn.Module, sample: dict[str, Any], reduce: bool) -> BatchUpdate:
        self.check_model(model)  # which fairseq's own tasks do not
        return BatchUpdate(self, super().forward, model, sample, reduce)

    def _gain_is_due(self) -> bool:
        # Once, whatever --update-freq is; and in the next batch of which something is perturbed
        # (--alum-fraction), where nothing was when it was due.
        expected = self.schedule.gain_measurements_before(self.num_updates + 1)
        due = expected > self._gains_measured
        self._gains_measured = expected
        return due

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the extended criterion's metrics, then ALUM's."""
        super().reduce_metrics(logging_outputs)
        metrics.reduce(super().reduce_metrics, logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every logging output is a sum."""
        return True
