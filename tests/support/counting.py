"""What is drawn of the generator, counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    """Counts what is drawn of the generator inside."""

    drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drawn += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
