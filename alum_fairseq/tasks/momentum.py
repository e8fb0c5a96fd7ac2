"""fairseq's EMA model as SMART's momentum model: its decay, which rises once."""

from __future__ import annotations

from typing import Any

from alum_fairseq.adversarial.proximal import momentum_decay

FAIRSEQ_DECAY = 0.9999  # fairseq's default of --ema-decay, which stands for none given


class MomentumSchedule:
    """Sets the decay that fairseq's EMA model, which asks its options, takes in its next step.

    A decay that the user gave is left alone.
    """

    def __init__(self, cfg: Any) -> None:
        self._options = cfg.ema if cfg.ema.ema_decay == FAIRSEQ_DECAY else None
        total = getattr(cfg.lr_scheduler, "total_num_update", None) or cfg.optimization.max_update
        self._total = float(total)

    def set_decay(self, num_updates: int) -> None:
        """Set it for the update after so many; with no limit of updates it stays the early one."""
        if self._options is not None:
            self._options.ema_decay = momentum_decay(num_updates, self._total)
