"""The methods of the field, as named sets of numbers.

``paper`` and ``reference`` reproduce what was published as ALUM; ``calibrated`` is what this
project recommends. The numbers of the others are those of the sources that are cited beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.adversarial.divergences import get_divergence
from alum_fairseq.adversarial.objectives import OBJECTIVES
from alum_fairseq.errors import FieldError, require, require_choice

Stage = Literal["pretraining", "finetuning"]

SIDES = ("both", "adversarial")
DROPOUTS = ("shared", "independent")


@dataclass(frozen=True)
class Preset:
    """The numbers of a method.

    Attributes:
        method: a key of :data:`alum_fairseq.adversarial.methods.METHODS`.
        adversary: the inner maximisation.
        objective: what it climbs: ``"divergence"`` from the clean prediction, or ``"task-loss"``.
        divergence: a key of :data:`alum_fairseq.adversarial.divergences.DIVERGENCES`.
        sides: which predictions a consistency loss moves: ``"both"``, or the ``"adversarial"`` one
            alone, the clean one being a fixed target.
        proximal: weight of the distance to a momentum model, in multiples of alpha.
        site: where the perturbation enters: ``"words"``: the word embeddings, before positions and
            layer normalisation; ``"embeddings"``: the embedding output; ``"N"``: layer N's input.
        dropout: ``"shared"``: all passes of an update use the same dropout masks, so that the
            divergence is the perturbation's alone; ``"independent"``: each pass draws its own.
        pretraining_alpha: weight of what is added to the task's loss in (continual) pre-training.
        finetuning_alpha: that weight in fine-tuning.

    Raises:
        FieldError: a value is not one of its choices, or out of its range.
    """

    method: str = "regularize"
    adversary: Adversary = field(default_factory=Adversary)
    objective: str = "divergence"
    divergence: str = "kl"
    sides: str = "both"
    proximal: float = 0.0
    site: str = "embeddings"
    dropout: str = "shared"
    pretraining_alpha: float = 1.0
    finetuning_alpha: float = 1.0

    def __post_init__(self) -> None:
        require_choice("objective", self.objective, OBJECTIVES)
        require_choice("sides", self.sides, SIDES)
        require_choice("dropout", self.dropout, DROPOUTS)
        named = self.site in ("words", "embeddings") or self.site.isdecimal()
        require("site", self.site, "words, embeddings, or the number of a layer", named)
        require("proximal", self.proximal, "0 (off) or more", 0 <= self.proximal < float("inf"))
        for name in ("pretraining_alpha", "finetuning_alpha"):
            value = getattr(self, name)
            require("alpha", value, "0 (off) or more", 0 <= value < float("inf"))
        get_divergence(self.divergence)


# Liu et al. 2020, section 4: K=1, sigma=1e-5, eta=1e-3, epsilon=1e-5, alpha 10 and 1.
_PAPER = Adversary(
    epsilon=1e-5,
    epsilon_mode="absolute",
    step_size=1e-3,
    noise_std=1e-5,
    norm="linf",
    norm_scope="token",
    gradient="raw",
    projection="clip",
)
_ALUM_PAPER = Preset(adversary=_PAPER, dropout="independent", pretraining_alpha=10.0)

# Miyato et al. 2017 (arXiv 1605.07725), section 4: epsilon 5, on word embeddings of variance 1, 256
# numbers and sequences of up to 400 words. Of the root mean square, that is 5 / sqrt(256 * 400).
_MIYATO = Adversary(epsilon=0.016, step_size=0.016, projection="clip")
_ON_WORDS = Preset(objective="task-loss", site="words")

# Zhu et al. 2020 (arXiv 1909.11764), their script for CoLA with RoBERTa-large.
_FREELB = Adversary(
    start="uniform",
    steps=3,
    epsilon=0.3,
    epsilon_mode="absolute",
    step_size=0.025,
    noise_std=0.4,
    projection="clip",
)

PRESETS: dict[str, Preset] = {
    "calibrated": Preset(pretraining_alpha=0.3, finetuning_alpha=1.0),
    "paper": _ALUM_PAPER,
    # The released code divides each token's vector by its largest absolute entry (+1e-6): the
    # perturbation's size is about 1, whatever its epsilon says.
    "reference": replace(_ALUM_PAPER, adversary=replace(_PAPER, projection="rescale", epsilon=1.0)),
    # KL(sg c || f(w + r)), r = epsilon g / |g|, lambda 1.
    "vat": Preset(
        adversary=replace(_MIYATO, step_size=math.inf),
        divergence="reverse_kl",
        sides="adversarial",
        site="words",
    ),
    # Aghajanyan et al. 2020 (arXiv 2008.03156): lambda 1, U(-1e-5, 1e-5), not climbed.
    "r3f": Preset(
        adversary=replace(_PAPER, steps=0, start="uniform", projection="none"),
        divergence="symmetric_kl",
        site="words",
        dropout="independent",
    ),
    # Jiang et al. 2020 (arXiv 1911.03437): lambda 1, mu 1, and their code's 1e-5, 1e-3, 1e-5.
    "smart": Preset(
        method="proximal",
        adversary=replace(_PAPER, gradient="normalized"),
        divergence="symmetric_kl",
        proximal=1.0,
        dropout="independent",
    ),
    "fgm": replace(_ON_WORDS, method="adversarial-loss", adversary=replace(_MIYATO, start="zero")),
    # Madry et al. 2018 (arXiv 1706.06083): a random start in the ball, steps of 2.5 epsilon / K.
    "pgd": replace(
        _ON_WORDS,
        method="adversarial-loss",
        adversary=replace(_MIYATO, start="uniform", noise_std=0.016, steps=3, step_size=0.0133),
    ),
    "freelb": replace(_ON_WORDS, method="freelb", adversary=_FREELB),
    # Li et al. 2021 (arXiv 2108.12777): 10 steps and no cap; step and start of their TextDefender.
    "freelb++": replace(
        _ON_WORDS,
        method="freelb",
        adversary=replace(_FREELB, steps=10, step_size=0.03, noise_std=0.05, projection="none"),
    ),
}


def get_preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        UsageError: the name is not a key of :data:`PRESETS`.
    """
    require_choice("preset", name, PRESETS)
    return PRESETS[name]


def with_values(
    preset: Preset, given: Mapping[str, Any], stage: Stage, divergence: str | None = None
) -> Preset:
    """A preset in which values of its fields, and of its adversary's, are others.

    Args:
        preset: whose values the others are.
        given: by the name of the field, or ``alpha``; what is neither is left alone.
        stage: whose weight ``alpha`` is.
        divergence: the one that fits, where the model predicts numbers.

    Raises:
        FieldError: a value is out of its range, or does not fit.
    """
    if divergence is not None:
        given = {"divergence": divergence, **given}
        problem = f"for regression it must be {divergence}, since a number is no distribution"
        if given["divergence"] != divergence:
            raise FieldError("divergence", f"is {given['divergence']}: {problem}")
    given = {f"{stage}_alpha" if name == "alpha" else name: v for name, v in given.items()}

    def among(instance: Any) -> dict[str, Any]:
        return {f.name: given[f.name] for f in fields(instance) if f.name in given}

    adversary = replace(preset.adversary, **among(preset.adversary))
    return replace(preset, **{**among(preset), "adversary": adversary})
