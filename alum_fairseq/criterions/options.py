"""The ``--alum-*`` options, and what they resolve to."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from alum_fairseq.adversarial.adversary import (
    ASCENTS,
    EPSILON_MODES,
    GRADIENTS,
    PROJECTIONS,
    Adversary,
)
from alum_fairseq.adversarial.divergences import DIVERGENCES
from alum_fairseq.adversarial.norms import NORMS, SCOPES
from alum_fairseq.adversarial.presets import PRESETS, get_preset
from alum_fairseq.encoder.tap import DROPOUTS
from alum_fairseq.errors import UsageError

Stage = Literal["pretraining", "finetuning"]

MEMORIES = ("normal", "low")
PRECISIONS: dict[str, Optional[torch.dtype]] = {
    "same": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

PRESET_CHOICES = ChoiceEnum(list(PRESETS))
ASCENT_CHOICES = ChoiceEnum(list(ASCENTS))
MEMORY_CHOICES = ChoiceEnum(list(MEMORIES))
PRECISION_CHOICES = ChoiceEnum(list(PRECISIONS))
EPSILON_MODE_CHOICES = ChoiceEnum(list(EPSILON_MODES))
NORM_CHOICES = ChoiceEnum(list(NORMS))
SCOPE_CHOICES = ChoiceEnum(list(SCOPES))
GRADIENT_CHOICES = ChoiceEnum(list(GRADIENTS))
PROJECTION_CHOICES = ChoiceEnum(list(PROJECTIONS))
DIVERGENCE_CHOICES = ChoiceEnum(list(DIVERGENCES))
DROPOUT_CHOICES = ChoiceEnum(list(DROPOUTS))

_FROM_PRESET = " (default: the preset's)"


@dataclass
class AlumConfig(FairseqDataclass):
    """Options that every ALUM criterion has. One that is not given takes the preset's value."""

    alum_preset: PRESET_CHOICES = field(
        default="calibrated",
        metadata={
            "help": "where options that are not given take their values from: 'calibrated' (this "
            "project's), 'paper' (Liu et al. 2020 to the letter) or 'reference' (the rule of "
            "their released code)"
        },
    )
    alum_alpha: Optional[float] = field(
        default=None,
        metadata={
            "help": "weight of the regulariser beside the task's loss; 0: off" + _FROM_PRESET
        },
    )
    alum_ascent: Optional[ASCENT_CHOICES] = field(
        default=None,
        metadata={
            "help": "what the first ascent step goes along: 'power': the divergence from a random "
            "start; at less cost 'sampled-label': the log-likelihood of labels drawn from the "
            "prediction, or 'true-label': the task's loss; 'random': a random direction of size "
            "epsilon, no ascent" + _FROM_PRESET
        },
    )
    alum_steps: Optional[int] = field(
        default=None,
        metadata={"help": "ascent steps (K); 0: the projected random start" + _FROM_PRESET},
    )
    alum_epsilon: Optional[float] = field(
        default=None,
        metadata={"help": "radius of the ball that the perturbation stays in" + _FROM_PRESET},
    )
    alum_epsilon_mode: Optional[EPSILON_MODE_CHOICES] = field(
        default=None,
        metadata={
            "help": "whether epsilon, step size and noise are absolute, or multiples of the root "
            "mean square of a sentence's embeddings (a coordinate)" + _FROM_PRESET
        },
    )
    alum_step_size: Optional[float] = field(
        default=None,
        metadata={
            "help": "length of an ascent step (eta): the norm of a normalised gradient, the "
            "factor of a raw one" + _FROM_PRESET
        },
    )
    alum_noise_std: Optional[float] = field(
        default=None,
        metadata={"help": "standard deviation of the random start (sigma)" + _FROM_PRESET},
    )
    alum_norm: Optional[NORM_CHOICES] = field(
        default=None, metadata={"help": "norm of the perturbation" + _FROM_PRESET}
    )
    alum_norm_scope: Optional[SCOPE_CHOICES] = field(
        default=None,
        metadata={"help": "what the norm is taken of: each token, or a sentence" + _FROM_PRESET},
    )
    alum_gradient: Optional[GRADIENT_CHOICES] = field(
        default=None,
        metadata={"help": "whether the gradient is divided by its norm" + _FROM_PRESET},
    )
    alum_projection: Optional[PROJECTION_CHOICES] = field(
        default=None,
        metadata={"help": "into the ball (clip), or to its surface (rescale)" + _FROM_PRESET},
    )
    alum_divergence: Optional[DIVERGENCE_CHOICES] = field(
        default=None,
        metadata={
            "help": "divergence between the predictions, in the ascent and in the loss "
            "(default: the preset's; squared_error for regression)"
        },
    )
    alum_dropout: Optional[DROPOUT_CHOICES] = field(
        default=None,
        metadata={"help": "dropout masks of the passes of one update" + _FROM_PRESET},
    )
    alum_step_layers: int = field(
        default=0,
        metadata={
            "help": "ascent steps after the first run only so many layers, and keep the gradient "
            "above them from the first step; 0: all layers"
        },
    )
    alum_ascent_precision: PRECISION_CHOICES = field(
        default="same",
        metadata={"help": "type that the ascent's matrix products are computed in (autocast)"},
    )
    alum_memory: MEMORY_CHOICES = field(
        default="normal",
        metadata={
            "help": "'low': hold the activations of one pass at a time, for one forward pass more "
            "an update; the same loss and gradients"
        },
    )
    alum_fraction: float = field(
        default=1.0,
        metadata={
            "help": "share of each batch's sequences, chosen at random, that is perturbed; their "
            "regulariser counts 1 / share times, so that alpha means the same"
        },
    )
    alum_interval: int = field(
        default=1,
        metadata={
            "help": "perturb in every n-th update only, where the regulariser counts n times, so "
            "that alpha means the same"
        },
    )
    alum_layer: int = field(
        default=0,
        metadata={
            "help": "where the perturbation enters: 0: the embedding output, N: layer N's input"
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


# Options named after fields of the adversary.
_ADVERSARY_FIELDS = tuple(f.name for f in dataclasses.fields(Adversary))


@dataclass(frozen=True)
class AlumSettings:
    """What the options resolve to, checked.

    Attributes:
        preset: name of the preset that filled the gaps.
        adversary: the inner maximisation.
        alpha: weight of the regulariser once the schedule has run its course.
        layer: where the perturbation enters.
        step_layers: how many layers ascent steps after the first run; 0 for all.
        ascent_precision: ``"same"``, ``"bf16"`` or ``"fp16"``: the type of the ascent's products.
        memory: ``"normal"``, or ``"low"``: one pass's activations at a time.
        fraction: share of each batch that is perturbed.
        interval: every how manieth update is.
        dropout: ``"shared"`` or ``"independent"`` masks.
        start_update: first update with the adversary.
        warmup_updates: updates in which alpha rises from 0.
        validate: whether validation batches are attacked.
        log_gain_interval: updates between two measurements of the gain; 0 for none.

    Raises:
        UsageError: an option is out of its range.
    """

    preset: str
    adversary: Adversary
    alpha: float
    layer: int
    step_layers: int
    ascent_precision: str
    memory: str
    fraction: float
    interval: int
    dropout: str
    start_update: int
    warmup_updates: int
    validate: bool
    log_gain_interval: int

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise UsageError(f"--alum-alpha is {self.alpha}: it must be 0 (off) or more")
        if not 0 < self.fraction <= 1:
            raise UsageError(
                f"--alum-fraction is {self.fraction}: it must be above 0 and at most 1 (all)"
            )
        if self.interval < 1:
            raise UsageError(f"--alum-interval is {self.interval}: it must be 1 (every) or more")
        if self.step_layers > 0 and self.adversary.steps < 2:
            raise UsageError(
                f"--alum-step-layers is {self.step_layers}, but --alum-steps is "
                f"{self.adversary.steps}: there must be 2 or more, since the first runs all layers"
            )
        for name in ("layer", "step_layers", "start_update", "warmup_updates", "log_gain_interval"):
            if getattr(self, name) < 0:
                option = "--alum-" + name.replace("_", "-")
                raise UsageError(f"{option} is {getattr(self, name)}: it must be 0 or more")

    @classmethod
    def resolve(cls, cfg: Any, stage: Stage, regression: bool = False) -> "AlumSettings":
        """Put the options that were given over the preset's values.

        Args:
            cfg: an :class:`AlumConfig`, or fairseq's ``DictConfig`` of one.
            stage: which of the preset's two alphas applies.
            regression: whether the model's output is a number, not a distribution.

        Raises:
            UsageError: an option is out of its range, or does not fit the task.
        """
        preset = get_preset(str(cfg.alum_preset))

        def given(name: str) -> dict[str, Any]:
            value = getattr(cfg, "alum_" + name)
            if value is None:
                return {}
            return {name: value if isinstance(value, int | float) else str(value)}

        if str(cfg.alum_ascent) == "random" and cfg.alum_steps:
            raise UsageError(
                f"--alum-steps is {cfg.alum_steps}, but --alum-ascent is random, which takes none: "
                "leave one of the two away"
            )
        overrides: dict[str, Any] = {"divergence": "squared_error"} if regression else {}
        for name in _ADVERSARY_FIELDS:
            overrides |= given(name)
        if regression and overrides["divergence"] != "squared_error":
            raise UsageError(
                f"--alum-divergence is {overrides['divergence']}: for regression it must be "
                "squared_error, since a number is no distribution"
            )
        if (
            not regression
            and overrides.get("ascent") == "true-label"
            and overrides.get("divergence") == "squared_error"
        ):
            raise UsageError(
                "--alum-ascent is true-label, but --alum-divergence is squared_error: labels that "
                "are classes need a divergence of distributions, such as kl"
            )
        try:
            adversary = dataclasses.replace(preset.adversary, **overrides)
        except UsageError as error:
            # The message begins with the field's name.
            field_name, rest = str(error).split(" ", 1)
            raise UsageError(f"--alum-{field_name.replace('_', '-')} {rest}") from None
        alpha = preset.pretraining_alpha if stage == "pretraining" else preset.finetuning_alpha
        return cls(
            preset=str(cfg.alum_preset),
            adversary=adversary,
            alpha=given("alpha").get("alpha", alpha),
            layer=cfg.alum_layer,
            step_layers=cfg.alum_step_layers,
            ascent_precision=str(cfg.alum_ascent_precision),
            memory=str(cfg.alum_memory),
            fraction=cfg.alum_fraction,
            interval=cfg.alum_interval,
            dropout=given("dropout").get("dropout", preset.dropout),
            start_update=cfg.alum_start_update,
            warmup_updates=cfg.alum_warmup_updates,
            validate=cfg.alum_validate,
            log_gain_interval=cfg.alum_log_gain_interval,
        )

    @property
    def scheduled(self) -> list[str]:
        """The options, of those in use, for which the number of the update matters."""
        in_use = {
            "--alum-start-update": self.start_update > 0,
            "--alum-warmup-updates": self.warmup_updates > 0,
            "--alum-interval": self.interval > 1,
        }
        return [option for option, used in in_use.items() if used]

    def alpha_at(self, num_updates: int) -> float:
        """Alpha after so many updates: 0 before the start, then a linear rise to the full value.

        With an interval of n, n times that in every n-th update, and 0 in the others.
        """
        since_start = num_updates - self.start_update
        if since_start < 0 or since_start % self.interval:
            return 0.0
        alpha = self.alpha * self.interval
        if since_start < self.warmup_updates:
            return alpha * since_start / self.warmup_updates
        return alpha

    def gain_measurements_before(self, num_updates: int) -> int:
        """How often the gain was due in the first so many updates; 0 where it never is."""
        if self.log_gain_interval == 0:
            return 0
        attacks = math.ceil((num_updates - self.start_update) / self.interval)
        return max(0, math.ceil(attacks / max(1, round(self.log_gain_interval / self.interval))))

    def __str__(self) -> str:
        shown = {"preset": self.preset, "alpha": self.alpha}
        shown |= {name: getattr(self.adversary, name) for name in _ADVERSARY_FIELDS}
        for f in dataclasses.fields(self):
            if f.name != "adversary":
                shown.setdefault(f.name, getattr(self, f.name))
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in shown.items()
            if value is not None
        )
