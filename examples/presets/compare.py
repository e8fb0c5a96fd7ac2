"""Compare the adversaries of the presets, and their neighbours, on a trained masked language model.

    python examples/presets/compare.py CHECKPOINT DATA [--sequences 32] [--seed 1]

For each adversary: the size of its perturbation, the divergence (KL, nats per masked token) that
it causes on held-out text, the divergence of a random direction of equal norm, and their ratio,
the gain (nan where both are below float32's rounding). Dropout is off unless a row says otherwise.
Prints a table; ``--json`` writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import fairseq
import torch
from torch import nn

import alum_fairseq
from alum_fairseq import PRESETS, Adversary
from alum_fairseq.checkpoints import load_model, load_state
from alum_fairseq.encoder_tap import EncoderTap

CALIBRATED = PRESETS["calibrated"].adversary

# Divergences below this are the rounding of float32, and so is their ratio.
ROUNDING = 1e-7

# Each is one change of `calibrated`, or a preset as it is.
ADVERSARIES: dict[str, Adversary] = {
    **{name: preset.adversary for name, preset in PRESETS.items()},
    "steps 2": replace(CALIBRATED, steps=2),
    "steps 3": replace(CALIBRATED, steps=3),
    "clip, step = epsilon": replace(CALIBRATED, projection="clip", step_size=CALIBRATED.epsilon),
    "clip, step = 10 epsilon": replace(
        CALIBRATED, projection="clip", step_size=10 * CALIBRATED.epsilon
    ),
    "noise 0.001": replace(CALIBRATED, noise_std=0.001),
    "noise 0.1": replace(CALIBRATED, noise_std=0.1, step_size=1.0),
    "epsilon 0.03": replace(CALIBRATED, epsilon=0.03),
    "epsilon 0.3": replace(CALIBRATED, epsilon=0.3),
    "l2 token": replace(CALIBRATED, norm="l2"),
    "l2 sentence": replace(CALIBRATED, norm="l2", norm_scope="sentence"),
    "linf sentence": replace(CALIBRATED, norm_scope="sentence"),
    "random (steps 0)": replace(CALIBRATED, steps=0),
    "absolute linf 0.1": replace(
        CALIBRATED, epsilon_mode="absolute", epsilon=0.1, step_size=0.1, noise_std=1e-3
    ),
}


@torch.no_grad()
def measure(
    model: nn.Module, batch: dict, adversary: Adversary, dropout: str | None, seed: int
) -> dict[str, float]:
    """Divergences per masked token of one adversary on one batch."""
    model.train(dropout is not None)
    torch.manual_seed(seed)
    tap = EncoderTap(model, dropout=dropout or "shared")
    masked = batch["target"].ne(model.encoder.dictionary.pad())
    with torch.enable_grad(), tap.recording():
        model(**batch["net_input"], masked_tokens=masked)
    with tap.ascending():
        delta = adversary.perturb(tap.rerun, tap.embeddings, tap.logits, tap.mask)
    kl = alum_fairseq.DIVERGENCES["kl"]
    found, by_chance = (
        kl.total(tap.rerun(tap.embeddings + perturbation), tap.logits).item()
        for perturbation in (delta, adversary.random_like(delta, tap.mask))
    )
    tokens = masked.sum().item()
    rms = tap.embeddings[tap.mask].square().mean().sqrt().item()
    return {
        "size": adversary.mean_size(delta, tap.mask).item(),
        "rms_of_embeddings": rms,
        "kl": found / tokens,
        "kl_random": by_chance / tokens,
        "gain": found / by_chance if by_chance / tokens > ROUNDING else float("nan"),
    }


def main() -> None:
    """Measure every adversary and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a masked language model trained by fairseq")
    parser.add_argument("data", type=Path, help="binarised data with a split 'valid'")
    parser.add_argument("--sequences", type=int, default=32, help="held-out sequences (32)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise (1)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()

    state = load_state(options.checkpoint)
    model, task, _ = load_model(state, options.checkpoint, data=str(options.data))
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    indices = dataset.ordered_indices()[-options.sequences :]
    batch = dataset.collater([dataset[int(i)] for i in indices])

    rows = [(name, adversary, None) for name, adversary in ADVERSARIES.items()]
    rows += [
        (f"calibrated, dropout on, {dropout}", CALIBRATED, dropout)
        for dropout in ("shared", "independent")
    ]
    results = {}
    print(f"{'adversary':34} {'size':>9} {'KL':>10} {'KL random':>10} {'gain':>8}")
    for name, adversary, dropout in rows:
        row = results[name] = measure(model, batch, adversary, dropout, options.seed)
        print(
            f"{name:34} {row['size']:9.2g} {row['kl']:10.2g} {row['kl_random']:10.2g} "
            f"{row['gain']:8.1f}",
            flush=True,
        )
    print(f"embeddings' root mean square: {row['rms_of_embeddings']:.2f}")
    if options.json:
        versions = {"torch": torch.__version__, "fairseq": fairseq.__version__}
        report = {"machine": platform.machine(), "versions": versions, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
