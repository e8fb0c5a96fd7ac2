"""A batch of fairseq's, as the functions that a method takes, and what is logged of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from alum_fairseq.adversarial.gain import gain_of, mean_size
from alum_fairseq.adversarial.method import Clean, Graph, Result, Update
from alum_fairseq.encoder.modes import padding_asked_once, recomputed
from alum_fairseq.encoder.random_state import random_state
from alum_fairseq.encoder.tap import EncoderTap, sentence_encoder

# The loss, the sample size and the logging outputs, as fairseq's criteria return them.
Output = tuple[Tensor, Tensor | int, dict[str, Any]]


class BatchUpdate:
    """A batch, as the functions of an :class:`Update`.

    Args:
        criterion: whose batch it is, an ``AlumCriterion``.
        forward: of the criterion that ours extends.
        model: to be trained.
        sample: the batch.
        reduce: as fairseq tells ``forward``.

    Attributes:
        sample_size: as the criterion counts it, once the clean pass was made.
        log: the criterion's logging output, likewise.
    """

    def __init__(
        self,
        criterion: Any,
        forward: Callable[..., Output],
        model: nn.Module,
        sample: dict[str, Any],
        reduce: bool,
    ) -> None:
        self.sample_size: Tensor | int = 0
        self.log: dict[str, Any] = {}
        self._criterion, self._model, self._sample = criterion, model, sample
        self._run = partial(forward, sample=sample, reduce=reduce)
        preset, self._problem = criterion.preset, criterion.problem
        self._logits = partial(self._problem.logits_of, sample=sample)
        self._tap = EncoderTap(model, preset.site, preset.dropout, self._logits)

    def update(self) -> Update:
        """The batch, as a method takes it."""
        criterion, training = self._criterion, self._model.training
        device = next(self._model.parameters()).device
        with_momentum = training and criterion.preset.proximal > 0
        return Update(
            clean=self._clean,
            predict=self._tap.rerun,
            task_loss=self._task_loss,
            parameters=list(self._model.parameters()),
            # In validation the same noise for every batch, so that figures of two epochs compare.
            generator=_workers_own(device) if training else _fixed_generator(device),
            scale=criterion.loss_scale,
            ascending=self._tap.ascending,
            momentum=self._momentum if with_momentum else None,
        )

    def _clean(self, graph: Graph) -> Clean:
        criterion, tap, model = self._criterion, self._tap, self._model
        run = partial(self._run, model)
        with tap.recording(graph):
            if model.training and criterion.options.alum_memory == "low":
                loss, self.sample_size, self.log = recomputed(run, model, self._again)
            else:
                loss, self.sample_size, self.log = run()
        if not tap.recorded:
            return Clean(loss, tap.logits)
        criterion._watch.start(tap.embeddings, tap.mask)
        padding = getattr(criterion, "padding_idx", -1)
        weights = self._problem.weights(self._sample.get("target"), tap.logits, padding)
        return Clean(loss, tap.logits, tap.embeddings, tap.mask, weights, tap.entries, tap.below)

    @contextmanager
    def _again(self) -> Iterator[None]:
        with padding_asked_once(sentence_encoder(self._model)), self._criterion.silently():
            yield

    def _task_loss(self, embeddings: Tensor) -> Tensor:
        with ExitStack() as stack:
            if self._criterion.method.beside_clean:
                stack.enter_context(self._criterion.without_penalties(self._model))
            stack.enter_context(self._replaying(embeddings))
            return self._run(self._model)[0]

    def log_at(self, embeddings: Tensor) -> dict[str, Any]:
        """The criterion's logging output, had the embeddings been these."""
        with self._replaying(embeddings):
            return self._run(self._model)[2]

    @contextmanager
    def _replaying(self, embeddings: Tensor) -> Iterator[None]:
        with self._tap.replaying(embeddings), self._criterion.silently():
            yield

    def _momentum(self) -> Tensor:
        model = self._criterion.ema_model.eval()
        tap = EncoderTap(model, logits=self._logits)
        with torch.no_grad(), tap.recording(), self._criterion.silently():
            self._run(model)
        return tap.logits

    def sums(self, result: Result) -> dict[str, Any]:
        """What is logged of an update, beside the gain."""
        if result.delta is None:
            return {"_alum_attempts": 1, "_alum_skipped": 1}
        ball, mask = self._criterion.method.adversary.ball, result.clean.mask
        return {
            "_alum_attempts": 1,
            "_alum_loss": result.adversarial_loss.detach(),
            "_alum_sample_size": self.sample_size,
            "_alum_norm": mean_size(ball, result.delta, mask),
            "_alum_batches": 1,
        }

    def gain(self, result: Result, seed: int) -> tuple[Tensor, Tensor, int]:
        """The divergence found, that of a random direction of equal length, and how often: once.

        Leaves random numbers as they were.
        """
        device = result.delta.device
        generator, back = _fixed_generator(device, seed), random_state(device)
        measured = gain_of(self._criterion.method, self.update(), result, generator)
        back()
        return *measured, 1


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
