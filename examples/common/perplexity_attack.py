"""The attack that perplexities of pre-trained models are measured under."""

from __future__ import annotations

from typing import Any

# As criterion of fairseq-validate (--model-overrides), whatever the model was trained with.
# Stronger than in training: three steps, long ones, each coordinate to its bound. The ball is
# named, so that the measure stays what it is when the preset changes.
PERPLEXITY_ATTACK: dict[str, Any] = {
    "_name": "alum_mlm",
    "alum_preset": "calibrated",
    "alum_norm": "linf",
    "alum_norm_scope": "token",
    "alum_gradient": "normalized",
    "alum_steps": 3,
    "alum_step_size": 10.0,
    "alum_projection": "clip",
    "alum_epsilon": 0.3,
    "alum_validate": True,
    "alum_start_update": 0,  # that of training is no business of the attack's
}
