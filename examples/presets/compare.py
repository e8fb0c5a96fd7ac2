"""Compare adversaries - the three ALUMs and their neighbours - on trained models.

    python examples/presets/compare.py CHECKPOINT DATA [CHECKPOINT DATA ...] [--examples 64]

Takes masked language models and fine-tuned classifiers. For each adversary and model: the size of
its perturbation (the root mean square of its coordinates, over that of the embeddings'), the
divergence (KL, nats a prediction) that it causes on held-out text, how much of ``calibrated``'s
that is, and the gain: the divergence over that of a random direction of equal length, in float32
and under bf16 autocast (a dash where the random one is below rounding). Dropout is off unless a row
says otherwise. Prints Markdown; ``--json`` writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fairseq
import torch
from torch import nn

from alum_fairseq import DIVERGENCES, PRESETS, Adversary, cli
from alum_fairseq.adversarial.gain import random_like
from alum_fairseq.adversarial.objectives import DivergenceFromClean
from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.encoder.tap import EncoderTap
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_folder, whole_file

CALIBRATED = PRESETS["calibrated"].adversary

# Divergences below this are the rounding of float32, and so is their ratio.
ROUNDING = 1e-7


@dataclass(frozen=True)
class Setting:
    """A row: an adversary, and how it is used.

    Attributes:
        adversary: the inner maximisation.
        dropout: None: off; else how the passes share its masks.
    """

    adversary: Adversary
    dropout: str | None = None


def _settings() -> dict[str, Setting]:
    """The rows. Each is a preset as it is, or one change of ``calibrated``."""

    def changed(**changes: Any) -> Setting:
        return Setting(replace(CALIBRATED, **changes))

    rows = {name: Setting(PRESETS[name].adversary) for name in ("calibrated", "paper", "reference")}
    for norm, scope, gradient in (
        ("linf", "token", "normalized"),
        ("linf", "token", "steepest"),
        ("linf", "sentence", "normalized"),
        ("l2", "token", "normalized"),
        ("l2", "sentence", "normalized"),
    ):
        for epsilon in (0.03, 0.1, 0.3):
            name = f"{norm} {scope}{', steepest' if gradient == 'steepest' else ''}, {epsilon:g}"
            ball = {"norm": norm, "norm_scope": scope, "gradient": gradient}
            rows[name] = changed(**ball, epsilon=epsilon)
    for step in (0.01, 0.1, 1.0):
        rows[f"step {step:g}"] = changed(step_size=step)
        rows[f"step {step:g}, clip"] = changed(step_size=step, projection="clip")
    for noise in (0.001, 0.01, 0.1):
        rows[f"noise {noise:g}"] = changed(noise_std=noise)
    rows["K = 2"] = changed(steps=2)
    rows["K = 3"] = changed(steps=3)
    rows["random"] = changed(steps=0)
    for dropout in ("shared", "independent"):
        rows[f"dropout on, {dropout}"] = replace(rows["calibrated"], dropout=dropout)
    return rows


SETTINGS = _settings()


@dataclass
class Subject:
    """A trained model with a batch of held-out examples.

    Attributes:
        model: as fairseq has it.
        inputs: keyword arguments of its forward pass.
    """

    model: nn.Module
    inputs: Mapping[str, Any]

    @classmethod
    def load(cls, checkpoint: Path, data: Path, examples: int) -> Subject:
        """Read a model, and the longest examples of the split 'valid'.

        Raises:
            UsageError: one of them cannot be read, or the head has one output.
        """
        loaded = Checkpoint(checkpoint, existing_folder(data))
        model, head = loaded.model, loaded.head
        loaded.task.load_dataset("valid")
        dataset = loaded.task.dataset("valid")
        chosen = dataset.ordered_indices()[-examples:]
        batch = dataset.collater([dataset[int(i)] for i in chosen])
        if head is not None:
            if loaded.heads[head] < 2:
                raise UsageError(
                    f"{checkpoint} has a head with one output (regression, multiple choice): "
                    "there is no KL of it to compare by"
                )
            told = {"features_only": True, "classification_head_name": head}
        else:
            told = {"masked_tokens": batch["target"].ne(model.encoder.dictionary.pad())}
        return cls(model, {**batch["net_input"], **told})


def measure(
    subject: Subject, setting: Setting, seed: int, precision: torch.dtype | None = None
) -> dict[str, float]:
    """What a perturbation does.

    Args:
        subject: the model and its batch.
        setting: the adversary.
        seed: of the noise.
        precision: of autocast; None: float32.

    Returns:
        ``size``: relative to the embeddings; ``kl`` and ``kl_random``: nats a prediction, of the
        perturbation and of a random one of its length.
    """
    subject.model.train(setting.dropout is not None)
    torch.manual_seed(seed)
    tap = EncoderTap(subject.model, dropout=setting.dropout or "shared")
    adversary, kl = setting.adversary, DIVERGENCES["kl"]
    with _autocast(precision):
        with tap.recording():
            subject.model(**subject.inputs)
        objective = DivergenceFromClean(tap.rerun, tap.logits, kl)
        with tap.ascending():
            delta = adversary.perturb(objective, tap.embeddings, tap.mask)
        with torch.no_grad():
            found, by_chance = (
                kl.total(tap.rerun(tap.embeddings + perturbation), tap.logits).item()
                for perturbation in (delta, random_like(adversary.ball, delta, tap.mask))
            )
    tokens = tap.mask
    size = delta[tokens].float().square().mean() / tap.embeddings[tokens].float().square().mean()
    predictions = len(tap.logits)
    return {
        "size": size.sqrt().item(),
        "kl": found / predictions,
        "kl_random": by_chance / predictions,
    }


def _autocast(precision: torch.dtype | None) -> Any:
    return torch.autocast("cpu", precision) if precision else nullcontext()


def averaged(
    subject: Subject, setting: Setting, seeds: int, precision: torch.dtype | None = None
) -> dict[str, float]:
    """The mean over seeds of the noise, with the ratio of the means as ``gain``."""
    found = [measure(subject, setting, seed, precision) for seed in range(1, seeds + 1)]
    mean = {name: sum(one[name] for one in found) / seeds for name in found[0]}
    known = mean["kl_random"] > ROUNDING
    return mean | {"gain": mean["kl"] / mean["kl_random"] if known else float("nan")}


def table(subject: Subject, seeds: int, results: dict[str, Any]) -> Iterator[str]:
    """Measure every setting; the lines of a table as they come. Fills ``results``."""
    yield "| adversary | size | KL | of calibrated's | gain | KL, bf16 | gain, bf16 |"
    yield "|" + " --- |" * 7
    for name, setting in SETTINGS.items():
        full = averaged(subject, setting, seeds)
        half = averaged(subject, setting, seeds, torch.bfloat16)
        results[name] = {"fp32": full, "bf16": half}
        kept = full["kl"] / results["calibrated"]["fp32"]["kl"]
        yield (
            f"| {name} | {full['size']:.2g} | {full['kl']:.2g} | {kept:.2f} | "
            f"{_gain(full)} | {half['kl']:.2g} | {_gain(half)} |"
        )


def _gain(result: Mapping[str, float]) -> str:
    gain = result["gain"]
    return "-" if gain != gain else f"{gain:.1f}" if gain < 100 else f"{gain:.0f}"


def _main(argv: list[str]) -> None:
    parser = cli.make_parser("compare.py", __doc__)
    parser.add_argument("models", nargs="+", metavar="CHECKPOINT DATA", help="models to compare on")
    parser.add_argument("--examples", type=int, default=64, help="held-out examples (64)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the noise (2)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = _checked(parser.parse_args(argv))

    results: dict[str, Any] = {}
    for checkpoint, data in zip(options.models[::2], options.models[1::2], strict=True):
        subject = Subject.load(Path(checkpoint), Path(data), options.examples)
        print(f"\n{checkpoint}\n")
        for line in table(subject, options.seeds, results.setdefault(checkpoint, {})):
            print(line, flush=True)
    if options.json:
        versions = {"torch": torch.__version__, "fairseq": fairseq.__version__}
        report = {"machine": platform.machine(), "versions": versions, "results": results}
        with whole_file(options.json) as aside:
            aside.write_text(json.dumps(report, indent=2) + "\n")


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    if len(options.models) % 2:
        raise UsageError(f"{options.models[-1]} has no folder of data: give CHECKPOINT DATA pairs")
    for name in ("examples", "seeds"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} is {getattr(options, name)}: give 1 or more")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
