"""The three things that are called ALUM, as named sets of numbers.

``paper`` and ``reference`` reproduce what was published; ``calibrated`` is what this project
recommends. The README's section "Paper, released code, this project" measures the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """An adversary, and how much its regulariser counts.

    Attributes:
        adversary: the inner maximisation.
        pretraining_alpha: weight of the regulariser in (continual) pre-training.
        finetuning_alpha: weight of the regulariser in fine-tuning.
        dropout: ``"shared"``: all passes of an update use the same dropout masks, so that the
            divergence is the perturbation's alone; ``"independent"``: each pass draws its own.
    """

    adversary: Adversary = field(default_factory=Adversary)
    pretraining_alpha: float = 0.3
    finetuning_alpha: float = 1.0
    dropout: str = "shared"


_PAPER = Adversary(
    steps=1,
    epsilon=1e-5,
    epsilon_mode="absolute",
    step_size=1e-3,
    noise_std=1e-5,
    norm="linf",
    norm_scope="token",
    gradient="raw",
    projection="clip",
    divergence="kl",
)

PRESETS: dict[str, Preset] = {
    "calibrated": Preset(),
    # Liu et al. 2020, section 4: K=1, sigma=1e-5, eta=1e-3, epsilon=1e-5, alpha 10 and 1.
    "paper": Preset(
        adversary=_PAPER, pretraining_alpha=10.0, finetuning_alpha=1.0, dropout="independent"
    ),
    # The released code divides each token's vector by its largest absolute entry (+1e-6):
    # the perturbation's size is about 1, whatever its epsilon says.
    "reference": Preset(
        adversary=replace(_PAPER, projection="rescale", epsilon=1.0),
        pretraining_alpha=10.0,
        finetuning_alpha=1.0,
        dropout="independent",
    ),
}


def get_preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        UsageError: the name is not a key of :data:`PRESETS`.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise UsageError(
            f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}"
        ) from None
