"""Whether the perturbation is adversarial at all: what the log warns of, and what to do then."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from alum_fairseq.adversarial.adversary import Ascent
from alum_fairseq.adversarial.precision import compute_dtype
from alum_fairseq.adversarial.presets import Preset
from alum_fairseq.criterions.metrics import ratio

logger = logging.getLogger(__name__)

# A gain is called low when that of the last 20 measurements together stays below this value; at
# validation, when a run may be over, of as many as there are. That of an adversary is far above.
LOW_GAIN = 2.0
LOW_GAIN_MEASUREMENTS = 20
LEAST_MEASUREMENTS = 2


class Watch:
    """Warns, once each, of a start that is rounded away and of a gain that stays low.

    Args:
        preset: the settings in use.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._gains: list[tuple[float, float]] = []
        self._warned_of_gain = False
        self._looked_at_start = False

    def start(self, embeddings: Tensor, mask: Tensor) -> None:
        """Look at the random start, before the first ascent.

        Args:
            embeddings: ``(B, T, D)``, under the autocast of the pass.
            mask: ``(B, T)``, true on tokens.
        """
        adversary = self._preset.adversary
        explicit = adversary.steps and adversary.noise_std
        if self._looked_at_start or not explicit or self._preset.objective != "divergence":
            return
        self._looked_at_start = True
        ascent, dtype = Ascent(adversary, embeddings, mask), compute_dtype(embeddings)
        if not (ascent.noise_size() >= torch.finfo(dtype).eps * ascent.rms).all():
            logger.warning(
                "ALUM: a random start of --alum-noise-std %g is rounded away in %s: the ascent "
                "begins from rounding errors. Leave --alum-noise-std to --alum-preset calibrated, "
                "or raise it.",
                adversary.noise_std,
                str(dtype).removeprefix("torch."),
            )

    def gain(self, found: float, by_chance: float) -> None:
        """Look at one measurement: the divergence found, and that of a random direction."""
        self._gains = [*self._gains, (found, by_chance)][-LOW_GAIN_MEASUREMENTS:]
        self._judge(LOW_GAIN_MEASUREMENTS)

    def validation(self) -> None:
        """Look at what was measured before a validation: a short run has no more."""
        self._judge(LEAST_MEASUREMENTS)

    def _judge(self, least: int) -> None:
        if self._warned_of_gain or len(self._gains) < least:
            return
        gain = ratio(sum(pair[0] for pair in self._gains), sum(pair[1] for pair in self._gains))
        if not gain >= LOW_GAIN:  # nor where both divergences are below rounding
            self._warned_of_gain = True
            logger.warning(
                "ALUM: adv_gain is %.2g over %d measurements: the perturbation is hardly better "
                "than a random one, so this is noise, not adversarial training. %s",
                gain,
                len(self._gains),
                self._remedy(),
            )

    def _remedy(self) -> str:
        adversary = self._preset.adversary
        if adversary.steps == 0:
            return "--alum-steps is 0: set it to 1 or more."
        if adversary.gradient == "raw":
            return (
                "Use --alum-preset calibrated, or --alum-gradient normalized with a step size "
                "of the order of epsilon."
            )
        if self._preset.dropout == "independent":
            return "Use --alum-dropout shared: the divergence is mostly that of two dropout masks."
        return "Raise --alum-epsilon, or lower --alum-noise-std against --alum-step-size."
