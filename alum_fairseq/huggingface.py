"""The methods for any encoder of Hugging Face, through transformers' ``Trainer``; without fairseq.

The model is run as it is: a hook notes what enters at the site, or puts another in its place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import find_labels

from alum_fairseq.adversarial.gain import gain_of, mean_size
from alum_fairseq.adversarial.method import Clean, Graph, Result, Update
from alum_fairseq.adversarial.methods import build_method
from alum_fairseq.adversarial.presets import get_preset, with_values
from alum_fairseq.adversarial.proximal import momentum_decay
from alum_fairseq.adversarial.schedule import Schedule
from alum_fairseq.errors import FieldError, UsageError, did_you_mean
from alum_fairseq.problems import Classification, MaskedLM, Problem, Regression

Tap = Callable[[Tensor], Tensor]  # from what enters at the site to what the pass goes on from


class AlumMixin:
    """Put before a ``Trainer`` among the bases: its training updates are those of a method.

    Args:
        alum_...: the ``--alum-`` options by their names: ``alum_preset``, ``alum_epsilon``, ...

    Raises:
        UsageError: an option, the model or the training arguments do not fit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {name[5:]: kwargs.pop(name) for name in [*kwargs] if name.startswith("alum_")}
        super().__init__(*args, **kwargs)
        problem = _problem(self.model, self.args)
        stage = "pretraining" if problem is MaskedLM else "finetuning"
        start, warmup = given.pop("start_update", 0), given.pop("warmup_updates", 0)
        interval = given.pop("log_gain_interval", 100)
        try:
            preset = get_preset(given.pop("preset", "calibrated"))
            known = [f.name for part in (preset, preset.adversary) for f in fields(part)]
            options = ["alpha", *known]
            for name in sorted(given.keys() - {*options}):
                hint = did_you_mean(name, options)
                raise FieldError(name, f"is no option here: there are {', '.join(options)}{hint}")
            divergence = None if problem.categorical else problem.divergence
            preset = with_values(preset, given, stage, divergence)
            self._method = build_method(preset)
            for name in sorted(self._method.unused & given.keys()):
                raise FieldError(name, "has no effect with this preset: leave it out")
        except FieldError as error:
            raise UsageError(f"alum_{error.name} {error.problem}") from None
        self._schedule = Schedule(getattr(preset, f"{stage}_alpha"), start, warmup, interval)
        _site(self.model, preset.site)  # an early error
        self._categorical = problem.categorical
        self._divides: bool | None = None  # see _Batch.divides; None: not known yet
        self._begin()

    def _begin(self) -> None:
        """Forget an earlier run."""
        self._momentum: tuple[nn.Module, int] | None = None
        self._measured = -1  # the last step at which the gain was
        self._sums: dict[str, Tensor | float] = {}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        self._begin()
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss and what the method adds, a mean over the predictions."""
        alpha, plain = self._schedule.alpha_at(self.state.global_step), super().compute_loss
        if not model.training or alpha == 0:
            return plain(model, inputs, return_outputs, num_items_in_batch)
        batch, scaler = _Batch(self, plain, model, inputs), self.accelerator.scaler
        if self._divides is None and num_items_in_batch is not None:
            self._divides = batch.divides()
        # What the plain Trainer's loss is a mean over.
        count = max(int((self._divides and num_items_in_batch) or batch.size), 1)
        update = Update(
            batch.clean,
            predict=lambda embeddings: batch.at(embeddings)[1],
            task_loss=lambda embeddings: batch.at(embeddings)[0],
            parameters=list(model.parameters()),
            scale=(scaler.get_scale() if scaler else 1.0) / count,
            momentum=self._follow(batch) if self._method.preset.proximal else None,
        )
        result = self._method.loss(update, alpha)
        self._note(batch, update, result)
        loss = result.loss / count
        return (loss, batch.outputs) if return_outputs else loss

    def _follow(self, batch: _Batch) -> Callable[[], Tensor]:
        """Bring the momentum model up to the last step; what runs it."""
        step = self.state.global_step
        follower, last = self._momentum or (copy.deepcopy(batch.model).eval(), step)
        if last < step:
            both = ([p.detach() for p in m.parameters()] for m in (follower, batch.model))
            torch._foreach_lerp_(*both, 1 - momentum_decay(last, self.state.max_steps))
        self._momentum = follower, step
        return torch.no_grad()(lambda: batch.run(follower)[1])

    def _note(self, batch: _Batch, update: Update, result: Result) -> None:
        """Add what is logged of an update to what was since the last log."""
        sums, step = {"skipped": result.delta is None}, self.state.global_step
        if result.delta is not None:
            size = mean_size(self._method.adversary.ball, result.delta, result.clean.mask)
            sums |= {"loss": result.adversarial_loss.detach(), "predictions": batch.size}
            sums |= {"norm": size, "batches": 1}
            interval, since = self._schedule.gain_interval, step - self._schedule.start_update
            if interval and since % interval == 0 and step != self._measured:
                self._measured, device = step, result.delta.device
                generator = torch.Generator(device).manual_seed(step)
                with torch.random.fork_rng(batch.cuda):
                    pair = gain_of(self._method, update, result, generator)
                sums |= zip(("found", "random"), pair, strict=True)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does; beside the training loss, in its unit, what the plugin logs."""
        if "loss" in logs and self._sums:
            sums, self._sums = {name: float(value) for name, value in self._sums.items()}, {}
            logs["adv_skipped"] = sums.pop("skipped")
            names = {"adv_loss": ("loss", "predictions"), "adv_norm": ("norm", "batches")}
            names["adv_gain"] = ("found", "random")
            logs |= {n: sums[a] / sums[b] for n, (a, b) in names.items() if sums.get(b, 0) > 0}
        super().log(logs, *args, **kwargs)


class AlumTrainer(AlumMixin, Trainer):
    """transformers' ``Trainer`` with a method of adversarial training."""


class _Batch:
    """A batch as the functions of an :class:`Update`; losses are sums over ``size`` predictions."""

    def __init__(self, trainer: AlumMixin, loss: Any, model: nn.Module, inputs: Any) -> None:
        self._trainer, self._loss, self.model, self._inputs = trainer, loss, model, inputs
        self._tapped = _site(model, trainer._method.preset.site)
        labels, device = inputs["labels"], trainer.args.device
        self.size = int((labels != -100).sum()) if trainer._categorical else labels.numel()
        self.cuda = [device] if device.type == "cuda" else []

    def run(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the logits of the predictions that count."""
        labels = self._inputs["labels"]
        count = torch.tensor(max(self.size, 1), device=labels.device)
        loss, self._outputs = self._loss(model, dict(self._inputs), True, count)
        logits = self._outputs["logits"]
        if self._trainer._categorical:
            if logits.shape[:-1] != labels.shape:
                raise UsageError(f"logits {tuple(logits.shape)} are not of one class for a label")
            logits = logits[labels != -100]
        return (loss if self.size else loss.nan_to_num()) * self.size, logits

    def divides(self) -> bool:
        """Whether the loss is a sum divided by num_items_in_batch.

        Many models take that number and leave it: theirs is the mean of the batch, and of several
        batches that make an update the sum of the means. So it is with the plain Trainer.
        """
        count = torch.ones((), device=self._inputs["labels"].device, requires_grad=True)
        with torch.random.fork_rng(self.cuda):
            loss = self._loss(self.model, dict(self._inputs), False, count)
        return torch.autograd.grad(loss, count, allow_unused=True)[0] is not None

    def clean(self, graph: Graph) -> Clean:
        """The pass as it is; what entered at the site, and the random numbers, are kept."""

        self._states = None

        def note(states: Any) -> Any:
            if not isinstance(states, Tensor):  # I-BERT's words come with their scale
                return states
            self._below = self._states = states
            if graph != "whole":
                self._states = states.detach().requires_grad_()
            torch.set_grad_enabled(graph != "none")
            return self._states

        self._random = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.cuda)]
        with torch.set_grad_enabled(True), self._tapped(note):
            loss, logits = self.run(self.model)
        if self._states is None:
            site, name = self._trainer._method.preset.site, type(self.model).__name__
            raise UsageError(f"alum_site is {site}: the pass of a {name} does not come by there")
        self.outputs = self._outputs
        cut = {"entries": (self._states,), "below": (self._below,)} if graph != "whole" else {}
        mask = self._inputs.get("attention_mask")
        return Clean(loss, logits, self._states, None if mask is None else mask.bool(), **cut)

    def at(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The same, had these entered; shared dropout is that of the clean pass."""
        with ExitStack() as stack:
            if self._trainer._method.preset.dropout == "shared":
                stack.enter_context(torch.random.fork_rng(self.cuda))
                torch.set_rng_state(self._random[0])
                for device, state in zip(self.cuda, self._random[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            stack.enter_context(self._tapped(lambda _: embeddings))
            return self.run(self.model)


def _site(model: nn.Module, site: str) -> Callable[[Tap], Any]:
    """What sends all that enters at a site through a function, until its context ends."""
    if site == "words":
        words = model.get_input_embeddings()
        return lambda tap: words.register_forward_hook(lambda _, args, output: tap(output))
    number, count = 0 if site == "embeddings" else int(site), model.config.num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)]
    lists = [m for m in lists if len(m) == count > number]
    # XLM has lists of attentions, of norms, ...
    layers = next((m for m in lists if type(m[0]).__name__.endswith(("Layer", "Block"))), None)
    if layers is None:
        name = type(model).__name__
        raise UsageError(f"alum_site is {site}: no such layer is found in a {name}: try words")
    return lambda tap: layers[number].register_forward_pre_hook(
        lambda _, args: (tap(args[0]), *args[1:]) if args else None
    )


def _problem(model: nn.Module, args: Any) -> type[Problem]:
    """What the model's logits mean; a UsageError if it cannot be trained here."""
    if args.gradient_checkpointing or args.torch_compile or max(args.world_size, args.n_gpu) > 1:
        raise UsageError(
            "gradient_checkpointing, torch_compile and several devices do not go with ALUM's "
            "Trainer: leave them out (CUDA_VISIBLE_DEVICES=0: one GPU), or train with fairseq"
        )
    kind, name = model.config.problem_type, type(model).__name__
    several = len(find_labels(type(model))) > 1 or name.endswith("ForMultipleChoice")
    if several or kind == "multi_label_classification" or model.can_generate():
        raise UsageError(
            f"{name} (problem_type {kind}) cannot be trained here: it must be an encoder that "
            "predicts one class or number at a time"
        )
    if model.get_output_embeddings() is not None:
        return MaskedLM
    single = kind == "regression" or model.config.num_labels == 1
    return Regression if single else Classification
