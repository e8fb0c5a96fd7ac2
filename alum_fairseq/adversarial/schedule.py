"""When the adversary trains, and how much it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Alpha over the updates.

    Attributes:
        alpha: once the schedule has run its course.
        start_update: first update with the adversary.
        warmup_updates: updates in which alpha rises linearly from 0.
        gain_interval: updates between two measurements of the gain; 0 for none.
    """

    alpha: float
    start_update: int = 0
    warmup_updates: int = 0
    gain_interval: int = 0

    def alpha_at(self, num_updates: int) -> float:
        """Alpha after so many updates: 0 before the start, then a linear rise to the full value."""
        since_start = num_updates - self.start_update
        if since_start < 0:
            return 0.0
        if since_start < self.warmup_updates:
            return self.alpha * since_start / self.warmup_updates
        return self.alpha

    def gain_measurements_before(self, num_updates: int) -> int:
        """How often the gain was due in the first so many updates; 0 where it never is."""
        if self.gain_interval == 0:
            return 0
        return max(0, math.ceil((num_updates - self.start_update) / self.gain_interval))
