"""The ``--alum-*`` options, and what they resolve to."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from alum_fairseq.adversarial.adversary import EPSILON_MODES, GRADIENTS, PROJECTIONS, STARTS
from alum_fairseq.adversarial.divergences import DIVERGENCES
from alum_fairseq.adversarial.norms import NORMS, SCOPES
from alum_fairseq.adversarial.objectives import OBJECTIVES
from alum_fairseq.adversarial.presets import (
    DROPOUTS,
    PRESETS,
    SIDES,
    Preset,
    Stage,
    get_preset,
    with_values,
)
from alum_fairseq.errors import FieldError, UsageError, require

START_CHOICES = ChoiceEnum(list(STARTS))
OBJECTIVE_CHOICES = ChoiceEnum(list(OBJECTIVES))
SIDES_CHOICES = ChoiceEnum(list(SIDES))
MEMORY_CHOICES = ChoiceEnum(["normal", "low"])
EPSILON_MODE_CHOICES = ChoiceEnum(list(EPSILON_MODES))
SCOPE_CHOICES = ChoiceEnum(list(SCOPES))
GRADIENT_CHOICES = ChoiceEnum(list(GRADIENTS))
PROJECTION_CHOICES = ChoiceEnum(list(PROJECTIONS))
DROPOUT_CHOICES = ChoiceEnum(list(DROPOUTS))

# Presets, norms and divergences are plain texts: a user's own package may add to them.


def _from_preset(text: str) -> Any:
    return field(default=None, metadata={"help": f"{text} (default: the preset's)"})


# Options that are gone: what they were where nobody gave them, and what to do instead.
GONE: dict[str, tuple[Any, str]] = {
    "alum_ascent": (
        None,
        "for a random direction give --alum-steps 0, for the task's loss --alum-objective "
        "task-loss, for less cost --alum-fraction",
    ),
    "alum_ascent_precision": ("same", "give --amp, --fp16 or --bf16"),
    "alum_interval": (1, "give --alum-fraction, which costs the same and does more"),
    "alum_layer": (0, "give --alum-site, with the layer's number"),
    "alum_step_layers": (0, "leave it out, nothing takes its place"),
}


def _gone() -> Any:
    """A field without help: an option that whoever still gives it is told of."""
    return field(default=None, metadata={"help": argparse.SUPPRESS})


@dataclass
class AlumConfig(FairseqDataclass):
    """Options that every ALUM criterion has. One that is not given takes the preset's value."""

    alum_preset: str = field(
        default="calibrated",
        metadata={
            "help": "method, and where options that are not given take their values from: "
            + ", ".join(PRESETS)
        },
    )
    alum_alpha: Optional[float] = _from_preset(
        "weight of what the method adds to the task's loss; 0: off"
    )
    alum_objective: Optional[OBJECTIVE_CHOICES] = _from_preset(
        "what the ascent climbs: the divergence from the clean prediction, or the task's loss"
    )
    alum_start: Optional[START_CHOICES] = _from_preset("distribution of the random start")
    alum_noise_std: Optional[float] = _from_preset(
        "size of the random start (sigma): of a normal one the standard deviation"
    )
    alum_steps: Optional[int] = _from_preset("ascent steps (K); 0: the projected random start")
    alum_step_size: Optional[float] = _from_preset(
        "length of an ascent step (eta): the norm of a normalised gradient, the factor of a raw one"
    )
    alum_epsilon: Optional[float] = _from_preset(
        "radius of the ball that the perturbation stays in"
    )
    alum_epsilon_mode: Optional[EPSILON_MODE_CHOICES] = _from_preset(
        "whether epsilon, step size and noise are absolute, or multiples of the root mean square "
        "of a sentence's embeddings (per coordinate)"
    )
    alum_norm: Optional[str] = _from_preset("norm of the perturbation: " + ", ".join(NORMS))
    alum_norm_scope: Optional[SCOPE_CHOICES] = _from_preset(
        "what the norm is taken of: each token, or a sentence"
    )
    alum_gradient: Optional[GRADIENT_CHOICES] = _from_preset(
        "whether the gradient is divided by its norm"
    )
    alum_projection: Optional[PROJECTION_CHOICES] = _from_preset(
        "into the ball (clip), to its surface (rescale), or none"
    )
    alum_divergence: Optional[str] = field(
        default=None,
        metadata={
            "help": f"divergence between the predictions: {', '.join(DIVERGENCES)} "
            "(default: the preset's; squared_error for regression)"
        },
    )
    alum_sides: Optional[SIDES_CHOICES] = _from_preset(
        "which predictions the consistency loss moves: both, or the adversarial one alone"
    )
    alum_proximal: Optional[float] = _from_preset(
        "weight, in multiples of alpha, of the divergence from fairseq's EMA model (--store-ema)"
    )
    alum_site: Optional[str] = _from_preset(
        "where the perturbation enters: words (the word embeddings, before positions and layer "
        "normalisation), embeddings (the embedding output), or N (layer N's input)"
    )
    alum_dropout: Optional[DROPOUT_CHOICES] = _from_preset(
        "dropout masks of the passes of one update"
    )
    alum_memory: MEMORY_CHOICES = field(
        default="normal",
        metadata={
            "help": "low: hold the activations of one pass at a time, for one forward pass more "
            "per update; the same loss and gradients"
        },
    )
    alum_fraction: float = field(
        default=1.0,
        metadata={
            "help": "share of each batch's sequences, chosen at random, that is perturbed; what is "
            "added to their loss counts 1 / share times, so that alpha means the same"
        },
    )
    alum_start_update: int = field(
        default=0,
        metadata={"help": "first update with the adversary; plain training before it"},
    )
    alum_warmup_updates: int = field(
        default=0,
        metadata={"help": "updates in which alpha rises linearly from 0, after the start update"},
    )
    alum_validate: bool = field(
        default=False,
        metadata={
            "help": "in validation, attack every batch as well and log the metrics under attack "
            "(adv_ppl, adv_accuracy, ...), fit for --best-checkpoint-metric"
        },
    )
    alum_log_gain_interval: int = field(
        default=100,
        metadata={
            "help": "measure adv_gain, the divergence against that of a random direction of equal "
            "norm, every so many updates (each costs one forward pass); 0: never"
        },
    )
    alum_ascent: Optional[str] = _gone()
    alum_ascent_precision: Optional[str] = _gone()
    alum_interval: Optional[str] = _gone()
    alum_layer: Optional[str] = _gone()
    alum_step_layers: Optional[str] = _gone()


def resolve(cfg: Any, stage: Stage, divergence: str, categorical: bool) -> Preset:
    """Put the options that were given over the preset's values.

    Args:
        cfg: an :class:`AlumConfig`, or fairseq's ``DictConfig`` of one.
        stage: which of the preset's two alphas applies.
        divergence: the problem's own.
        categorical: whether its logits stand for a distribution.

    Raises:
        UsageError: an option is out of its range, or does not fit the task.
    """
    check(cfg)
    try:
        preset = get_preset(str(cfg.alum_preset))
    except FieldError as error:
        raise named_by_option(error) from None
    given = {
        f.name.removeprefix("alum_"): getattr(cfg, f.name)
        for f in dataclasses.fields(AlumConfig)
        if f.name.startswith("alum_") and getattr(cfg, f.name) is not None
    }
    given = {n: v if isinstance(v, int | float) else str(v) for n, v in given.items()}
    try:
        return with_values(preset, given, stage, None if categorical else divergence)
    except FieldError as error:
        raise named_by_option(error) from None


def check(cfg: Any) -> None:
    """Make sure that no option is gone, and that those without a preset are in their ranges.

    A value that an option had by default is let pass: checkpoints of before hold all of them.

    Raises:
        UsageError: one is.
    """
    for name, (default, instead) in GONE.items():
        value = getattr(cfg, name)
        if value is not None and str(value) != str(default):
            raise UsageError(f"--{name.replace('_', '-')} is gone: {instead}")
    try:
        fraction = cfg.alum_fraction
        require("fraction", fraction, "above 0 and at most 1 (all)", 0 < fraction <= 1)
        for name in ("start_update", "warmup_updates", "log_gain_interval"):
            value = getattr(cfg, f"alum_{name}")
            require(name, value, "0 or more", value >= 0)
    except FieldError as error:
        raise named_by_option(error) from None


def check_used(cfg: Any, unused: frozenset[str]) -> None:
    """Make sure that no option was given that the method has no use for.

    Raises:
        UsageError: one was.
    """
    defaults = AlumConfig()
    for name in sorted(unused):
        value = getattr(cfg, f"alum_{name}")
        off = name == "alpha" and value == 0
        if str(value) != str(getattr(defaults, f"alum_{name}")) and not off:
            option = f"--alum-{name.replace('_', '-')}"
            raise UsageError(
                f"{option} is {value}, but has no effect with --alum-preset {cfg.alum_preset}: "
                "leave it out"
            )


def _without_effect(preset: Preset) -> dict[str, str]:
    """Settings that others leave no effect, and which those are."""
    adversary = preset.adversary
    reasons = {
        "epsilon": ("--alum-projection none", adversary.projection == "none"),
        "noise_std": ("--alum-start zero", adversary.start == "zero"),
        "projection": ("--alum-step-size inf", adversary.step_size == float("inf")),
        "step_size": ("--alum-steps 0", adversary.steps == 0),
        "gradient": ("--alum-steps 0", adversary.steps == 0),
        "objective": ("--alum-steps 0", adversary.steps == 0),
    }
    return {name: reason for name, (reason, holds) in reasons.items() if holds}


def without_effect(cfg: Any, preset: Preset) -> list[str]:
    """What to tell whoever gave an option that other settings leave no effect; often nothing."""
    return [
        f"--alum-{name.replace('_', '-')} has no effect with {reason}"
        for name, reason in _without_effect(preset).items()
        if getattr(cfg, f"alum_{name}") is not None
    ]


def named_by_option(error: FieldError) -> UsageError:
    """The same error, with the option in the place of the field."""
    return UsageError(f"--alum-{error.name.replace('_', '-')} {error.problem}")


def describe(cfg: Any, preset: Preset, alpha: float, unused: frozenset[str]) -> str:
    """All settings in one line, for the log, without those that have no effect."""
    shown: dict[str, Any] = {"preset": str(cfg.alum_preset), "alpha": alpha}
    for instance in (preset, preset.adversary):
        for f in dataclasses.fields(instance):
            if f.name != "adversary" and not f.name.endswith("_alpha"):
                shown[f.name] = getattr(instance, f.name)
    for name in ("memory", "fraction", "start_update", "warmup_updates", "validate"):
        shown[name] = getattr(cfg, f"alum_{name}")
    shown["log_gain_interval"] = cfg.alum_log_gain_interval
    if shown["noise_std"] is None:
        shown["noise_std"] = "by-precision"
    idle = unused | _without_effect(preset).keys()
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in shown.items()
        if name not in idle
    )
