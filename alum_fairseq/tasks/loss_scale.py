"""What fairseq's optimizers multiply a loss by before its backward pass."""

from __future__ import annotations

from typing import Any


def loss_scale_of(optimizer: Any) -> float:
    """The loss scale of ``--fp16`` and ``--amp``; 1 for optimizers without one."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return 1.0
    # fairseq's own scaler, or torch's.
    return float(scaler.loss_scale if hasattr(scaler, "loss_scale") else scaler.get_scale())
