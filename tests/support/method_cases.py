"""Batches of every kind, and the same for the references: fairseq's own criterion, run by hand.

A pass of a reference is a whole one, from one state of the random numbers, with a perturbation
added where it enters. So all passes have the dropout masks, and LayerDrop's layers, of the first.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from torch import Tensor, nn

from alum_fairseq.adversarial.presets import PRESETS
from alum_fairseq.criterions.alum_mlm import AlumMlm, AlumMlmConfig
from alum_fairseq.criterions.alum_sentence_prediction import (
    AlumSentencePrediction,
    AlumSentencePredictionConfig,
)
from alum_fairseq.criterions.alum_sentence_ranking import (
    AlumSentenceRanking,
    AlumSentenceRankingConfig,
)
from support.naive_methods import METHODS as NAIVE
from support.naive_methods import Batch
from support.small_models import make_model, make_sample, make_task
from support.token_cases import TOKENS, Plain, criterion_of, make_tokens

KINDS = ("mlm", "classification", "regression", "ranking", *TOKENS)
SITES = ("words", "embeddings", "1")
HEAD = "sentence_classification_head"
SEED = 2

Sample = dict[str, Any]
Found = dict[str, Tensor]  # the loss, and the gradients by the names of the parameters


@dataclass
class Case:
    """A model in float64, a batch with padding, and who computes its loss.

    Attributes:
        stock: fairseq's own criterion.
        criterion: makes ours, of these options.
        momentum: SMART's other model.
    """

    kind: str
    model: nn.Module
    sample: Sample
    stock: nn.Module
    criterion: Callable[..., nn.Module]
    momentum: nn.Module

    def twin(self, **options: Any) -> Case:
        """The same case with more options of the model."""
        other = make_case(self.kind, **options)
        other.model.load_state_dict(self.model.state_dict())
        return other


def make_case(kind: str, lengths: tuple[int, ...] = (9, 7, 6, 4), **model_options: Any) -> Case:
    torch.manual_seed(1)
    task = make_task(passes_update_number=True, passes_ema_model=True)
    task.label_dictionary = task.source_dictionary
    # fairseq's gelu computes in float32, whatever the model is in.
    model = make_model(task, **{"activation_fn": "tanh", **model_options})
    sample = make_sample(task.source_dictionary, lengths, masked=2 if kind == "mlm" else 0)
    if kind == "mlm":
        stock = MaskedLmLoss(MaskedLmConfig(tpu=False), task)

        def criterion(**options: Any) -> nn.Module:
            return AlumMlm(AlumMlmConfig(tpu=False, **options), task)

    elif kind == "ranking":
        model.register_classification_head(HEAD, num_classes=1)
        shorter = tuple(max(3, length - 2) for length in reversed(lengths))
        other = make_sample(task.source_dictionary, shorter, masked=0)
        sample |= {"net_input1": sample.pop("net_input"), "net_input2": other["net_input"]}
        sample["target"] = torch.tensor([0, 1, 1, 0])
        stock = SentenceRankingCriterion(task, HEAD, None, 2)

        def criterion(**options: Any) -> nn.Module:
            return AlumSentenceRanking(AlumSentenceRankingConfig(num_classes=2, **options), task)

    elif kind in TOKENS:
        make_tokens(kind, model, sample)
        stock, criterion = Plain(kind), criterion_of(kind, task)

    else:
        numbers = kind == "regression"
        model.register_classification_head(HEAD, num_classes=1 if numbers else 3)
        sample["target"] = torch.tensor([[0], [2], [1], [0]])
        if numbers:
            sample["target"] = torch.tensor([[0.5], [1.5], [1.0], [0.1]])
        stock = SentencePredictionCriterion(
            SentencePredictionConfig(classification_head_name=HEAD, regression_target=numbers), task
        )

        def criterion(**options: Any) -> nn.Module:
            cfg = AlumSentencePredictionConfig(regression_target=numbers, **options)
            return AlumSentencePrediction(cfg, task)

    model.double().train()
    momentum = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in momentum.parameters():
            parameter.mul_(0.9)
    return Case(kind, model, sample, stock, criterion, momentum)


# ---------------------------------------------------------------------- the engine


def alpha_of(preset: str) -> float:
    """Perturbations of 1e-5 move the loss by 1e-10: weighed so that it shows."""
    return 1e9 if preset in ("paper", "r3f", "smart") else 1.7


def options_of(preset: str, **options: Any) -> dict[str, Any]:
    """Those of a criterion; FreeLB has no alpha.

    SMART's momentum term, which would hide the other, is for a test of its own.
    """
    chosen = {"alum_preset": preset, "alum_log_gain_interval": 0, **options}
    if PRESETS[preset].method != "freelb":
        chosen.setdefault("alum_alpha", alpha_of(preset))
    if preset == "smart":
        chosen.setdefault("alum_proximal", 0.0)
    return chosen


def gradients(model: nn.Module, loss: Tensor) -> Found:
    """Of one loss; by the names that the parameters have in a model without wrappers."""
    model.zero_grad()
    loss.backward()
    return {"loss": loss.detach().clone(), **accumulated(model)}


def accumulated(model: nn.Module) -> Found:
    return {
        name.replace("module.", ""): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def prepared(case: Case, preset: str, **options: Any) -> nn.Module:
    criterion = case.criterion(**options_of(preset, **options))
    criterion.prepare_update(0, 1.0, case.momentum)
    return criterion


def engine(case: Case, preset: str, model: nn.Module | None = None, **options: Any) -> Found:
    """What the criterion finds for the batch."""
    model = case.model if model is None else model
    criterion = prepared(case, preset, **options)
    torch.manual_seed(SEED)
    return gradients(model, criterion(model, case.sample)[0])


def stock(case: Case) -> Found:
    """What fairseq alone finds for it."""
    torch.manual_seed(SEED)
    return gradients(case.model, case.stock(case.model, case.sample)[0])


# ---------------------------------------------------------------------- the reference


def inputs_of(sample: Sample) -> list[str]:
    return sorted(name for name in sample if name.startswith("net_input"))


def rows_of(sample: Sample, rows: Tensor) -> Sample:
    part = {**sample, "target": sample["target"][rows]}
    for name in inputs_of(sample):
        part[name] = {key: value[rows] for key, value in sample[name].items()}
    return part


@contextmanager
def perturbed(model: nn.Module, site: str, r: Tensor | None, widths: list[int]) -> Iterator[Any]:
    """Inside, a pass has ``r`` added where it enters; yields what was there, call by call."""
    encoder = model.encoder.sentence_encoder
    parts = itertools.repeat(0.0) if r is None else iter(r.split(widths, dim=1))
    entered: list[Tensor] = []
    embed, calls = encoder.forward_embedding, []

    def add(states: Tensor) -> Tensor:
        entered.append(states.detach())
        return states + next(parts)

    def forward_embedding(tokens: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        calls.append(tokens)
        if site == "words":
            return embed(tokens, add(encoder.embed_tokens(tokens)))
        states, words = embed(tokens)
        return (add(states) if site == "embeddings" else states), words

    def before_layer(layer: nn.Module, args: tuple[Any, ...]) -> Any:
        if len(entered) == len(calls):  # LayerDrop may have left out the first of them
            return None
        return (add(args[0].transpose(0, 1)).transpose(0, 1), *args[1:])

    with ExitStack() as stack:
        encoder.forward_embedding = forward_embedding
        stack.callback(delattr, encoder, "forward_embedding")
        if site.isdecimal():
            for layer in list(encoder.layers.children())[int(site) :]:
                stack.callback(layer.register_forward_pre_hook(before_layer).remove)
        yield entered


class Passes:
    """Passes of fairseq's own criterion for a batch, all from one state of the random numbers."""

    def __init__(self, case: Case, site: str, sample: Sample | None = None) -> None:
        self.case, self.site = case, site
        self.sample = case.sample if sample is None else sample
        self.start = self.end = torch.get_rng_state()
        self.noised = None
        tokens = [self.sample[name]["src_tokens"] for name in inputs_of(self.sample)]
        self.widths = [each.shape[1] for each in tokens]
        self.mask = torch.cat(tokens, dim=1).ne(1)

    def run(self, r: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.run_on(self.case.model, r)

    def run_on(self, model: nn.Module, r: Tensor | None) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        hook = model.register_forward_hook(lambda _m, _a, output: outputs.append(output[0]))
        torch.set_rng_state(self.start)
        try:
            with perturbed(model, self.site, r, self.widths) as entered:
                loss = self.case.stock(model, self.sample)[0]
        finally:
            hook.remove()
        self.end, self.entered = torch.get_rng_state(), torch.cat(entered, dim=1)
        if self.case.kind in TOKENS:
            return loss, self.case.stock.predictions(self.sample, outputs[0])
        return loss, torch.cat(outputs, dim=1) if self.case.kind == "ranking" else outputs[0]

    def noise(self, name: str) -> Tensor:
        torch.set_rng_state(self.end)
        drawn = getattr(torch, name)(self.entered.shape, dtype=self.entered.dtype)
        self.noised = torch.get_rng_state()
        return drawn

    def batch(self, **options: Any) -> Batch:
        with torch.no_grad():
            logits = self.run(None)[1]
        if self.case.kind in TOKENS:
            options["weights"] = self.case.stock.weights(self.sample, logits)
        numbers = self.case.kind == "regression"
        return Batch(self.run, self.entered, self.mask, self.noise, numbers, **options)

    def momentum(self) -> Tensor:
        with torch.no_grad():
            return self.run_on(self.case.momentum.eval(), None)[1]


def naive(case: Case, preset: str, site: str, **options: Any) -> Found:
    """What the paper's formula finds for the batch."""
    torch.manual_seed(SEED)
    batch = Passes(case, site).batch(**options)
    return gradients(case.model, NAIVE[preset](batch, alpha_of(preset)))


def naive_with_momentum(case: Case, alpha: float) -> Found:
    """SMART with its momentum model."""
    torch.manual_seed(SEED)
    passes = Passes(case, "embeddings")
    batch = passes.batch(momentum=passes.momentum())
    return gradients(case.model, NAIVE["smart"](batch, alpha))


def naive_in_part(case: Case, preset: str, site: str, fraction: float) -> Found:
    """The same for some rows, weighed up; the others as fairseq has them."""
    torch.manual_seed(SEED)
    sentences = case.sample["nsentences"]
    count = int(fraction * sentences + torch.rand(()).item())
    order = torch.randperm(sentences)
    chosen = torch.zeros(sentences, dtype=torch.bool)
    chosen[order[:count]] = True
    assert 0 < count < sentences
    passes = Passes(case, site, rows_of(case.sample, order[:count]))
    loss = NAIVE[preset](passes.batch(), alpha_of(preset) / fraction)
    torch.set_rng_state(passes.end if passes.noised is None else passes.noised)
    rest = case.stock(case.model, rows_of(case.sample, ~chosen))[0]
    return gradients(case.model, loss + rest)
