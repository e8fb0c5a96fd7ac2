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

from support import pretended_cuda  # first of all

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
}


def main() -> None:
    """Count the second update of every mode; the first measures the gain, and warns."""
    gpu = pretended_cuda.start()
    logging.disable(logging.INFO)
    counts: dict[str, Any] = {}
    for kind in KINDS:
        for mode, options in MODES.items():
            with tempfile.TemporaryDirectory() as folder, metrics.aggregate("train"):
                trainer = make_trainer(kind, Path(folder), options)
                batch = make_batch(trainer, kind)
                for _ in range(2):
                    gpu.reset()
                    trainer.train_step([batch])
            counts[f"{kind}, {mode}"] = {
                "waits": {f"{why}: {line}": n for (why, line), n in sorted(gpu.waits.items())},
                "launches": gpu.launches.total(),
            }
    json.dump(counts, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
