"""Go back to where torch's random numbers were."""

from __future__ import annotations

from collections.abc import Callable

import torch


def random_state(device: torch.device) -> Callable[[], None]:
    """What random numbers are drawn from now; calling it has them drawn from there again.

    Those of the CPU and of this device alone: fairseq's ``utils.get_rng_state`` would start a GPU
    that ``--cpu`` leaves idle, and torch's activation checkpointing ends where a pass starts one.
    """
    on_cpu = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def draw_again() -> None:
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)

    return draw_again
