"""What updates on the pretended GPU launch, and what the host waits for: a program, in JSON.

The device is to be there before torch is imported, and stays: it needs a process of its own.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from support import pretended_cuda  # before torch

# isort: split
from fairseq.logging import metrics

import alum_fairseq  # noqa: F401  registers the criteria
from support.trainers import KINDS, make_batch, make_trainer

MODES: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "exact": {},
    "exact, K=3": {"alum-steps": 3},
    "low memory": {"alum-memory": "low"},
    "low memory, K=3": {"alum-memory": "low", "alum-steps": 3},
    "half of the batch": {"alum-fraction": 0.5},
    **{name: {"alum-preset": name} for name in ("fgm", "pgd", "freelb")},
    "smart": {"alum-preset": "smart", "store-ema": True},
}


def count(gpu: Any, kind: str, mode: str) -> dict[str, Any]:
    """The second update's waits, by reason and place, and launches; the first measures the gain."""
    with tempfile.TemporaryDirectory() as folder, metrics.aggregate("train", new_root=True):
        trainer = make_trainer(kind, Path(folder), MODES[mode])
        batch = make_batch(trainer, kind)
        for _ in range(2):
            gpu.reset()
            trainer.train_step([batch])
    waits = {f"{why}: {place}": n for (why, place), n in sorted(gpu.waits.items())}
    return {"waits": waits, "launches": gpu.launches.total()}


def main() -> None:
    """Count every mode of every task."""
    gpu = pretended_cuda.start()
    logging.disable(logging.INFO)
    counts = {f"{kind}, {mode}": count(gpu, kind, mode) for kind in KINDS for mode in MODES}
    json.dump(counts, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
