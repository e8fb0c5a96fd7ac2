"""The methods by name. A user's own package may add to them."""

from __future__ import annotations

from alum_fairseq.adversarial.adversarial_loss import AdversarialLoss
from alum_fairseq.adversarial.freelb import FreeLB
from alum_fairseq.adversarial.method import Method
from alum_fairseq.adversarial.presets import Preset
from alum_fairseq.adversarial.proximal import Proximal
from alum_fairseq.adversarial.regularize import Regularize
from alum_fairseq.errors import require_choice

METHODS: dict[str, type[Method]] = {
    "regularize": Regularize,
    "proximal": Proximal,
    "adversarial-loss": AdversarialLoss,
    "freelb": FreeLB,
}


def build_method(preset: Preset) -> Method:
    """The method that a preset names, with its numbers.

    Raises:
        FieldError: there is no such method, or the numbers do not go with it.
    """
    require_choice("method", preset.method, METHODS)
    return METHODS[preset.method](preset)
