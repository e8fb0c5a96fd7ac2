"""Pre-training a small model from scratch, plainly and with ALUM: the steps, and the result."""

from __future__ import annotations

from pathlib import Path

from jobs import DemoError, Runner, Stages, Step, logged, share_of_updates
from options import Scale
from perplexity_attack import PERPLEXITY_ATTACK

_METHODS = {"plain": "masked_lm", "alum": "alum_masked_lm"}
_TOKENS = 32  # in a sequence


def stages(scale: Scale, output: Path, seed: int) -> Stages:
    """The steps; those of a stage run side by side."""
    text, data, models = output / "text", output / "data", output / "models"
    half = scale.updates // 2
    every = str(max(1, scale.updates // 10))
    shared = [
        *("--arch", "roberta_base", "--encoder-layers", str(scale.layers)),
        *("--encoder-embed-dim", str(scale.width), "--encoder-ffn-embed-dim", str(4 * scale.width)),
        *("--encoder-attention-heads", str(scale.width // 32), "--max-positions", str(2 * _TOKENS)),
        *("--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--adam-eps", "1e-6"),
        *("--weight-decay", "0.01", "--clip-norm", "1.0", "--lr", "2e-3"),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", str(scale.updates // 10)),
        *("--total-num-update", str(scale.updates), "--max-update", str(scale.updates)),
        *("--sample-break-mode", "none", "--tokens-per-sample", str(_TOKENS)),
        *("--batch-size", "16", "--dropout", "0.0", "--attention-dropout", "0.0"),
        *("--disable-validation", "--seed", str(seed), "--cpu", "--num-workers", "0"),
        *("--log-format", "json", "--log-interval", str(max(1, scale.updates // 50))),
        *("--save-interval-updates", every, "--keep-interval-updates", "1"),
        "--no-epoch-checkpoints",
    ]  # fmt: skip
    objectives = {
        "plain": ("--task", "masked_lm", "--criterion", "masked_lm"),
        "alum": (
            "--task", "alum_masked_lm", "--criterion", "alum_mlm", "--alum-start-update", str(half),
        ),
    }  # fmt: skip
    training, attacks = [], []
    for name, objective in objectives.items():
        command = ["fairseq-train", str(data), "--user-dir", "alum_fairseq", *objective, *shared]
        training.append(
            Step(
                f"pretrain-{name}", f"pre-training, {name}",
                (*command, "--save-dir", str(models / name)), 120 if name == "plain" else 220,
                models / name, resumes=True, share=share_of_updates(scale.updates),
            )
        )  # fmt: skip
        command = [
            *("fairseq-validate", str(data), "--user-dir", "alum_fairseq", "--task", "masked_lm"),
            *("--path", str(models / name / "checkpoint_last.pt"), "--batch-size", "32"),
            *("--model-overrides", str({"criterion": PERPLEXITY_ATTACK})),
            *("--cpu", "--num-workers", "0", "--log-format", "json"),
        ]  # fmt: skip
        attacks.append(Step(f"attack-{name}", f"attacking {name}", tuple(command), 40))
    harvest = ("python", "examples/common/docstrings.py", str(text), str(scale.megabytes))
    recipe = "examples/pretraining/prepare_sentencepiece.sh"
    prepare = ("bash", recipe, f"{text}/train.txt", f"{text}/test.txt", str(data))
    return [
        [Step("text", "reading docstrings of the installed packages", harvest, 60, text)],
        [Step("prepare", "encoding them", (*prepare, str(scale.vocabulary)), 25, data)],
        training,
        attacks,
    ]  # fmt: skip


def closing(scale: Scale, output: Path, runner: Runner) -> list[str]:
    """What was done, who won, at what perplexity, what it cost, where the models are, what next."""
    found = {name: _attacked(output / "logs" / f"attack-{name}.log") for name in ("plain", "alum")}
    clean, attacked = (
        {name: float(stats[f"valid_{key}"]) for name, stats in found.items()}
        for key in ("ppl", "adv_ppl")
    )
    spent = {name: runner.spent(f"pretrain-{name}")["cpu"] for name in found}
    winner = "ALUM" if attacked["alum"] < attacked["plain"] else "plain training"
    return [
        f"Done: a model of {scale.layers} layers was pre-trained on docstrings for "
        f"{scale.updates:,} updates, plainly and with ALUM (in the second half).",
        f"More robust: {winner}. Under an attack on the embeddings the perplexity is "
        f"{attacked['alum']:.0f} (ALUM) and {attacked['plain']:.0f} (plain); one run of each, no "
        "evidence.",
        f"Without attack: perplexity {clean['alum']:.0f} (ALUM) and {clean['plain']:.0f} (plain).",
        f"Cost: training with ALUM took {spent['alum'] / spent['plain']:.1f} times as long "
        f"({spent['alum']:.0f} s of a processor core, plain {spent['plain']:.0f} s).",
        f"Models: {output / 'models'}  What the tools printed: {output / 'logs'}",
        "Your own text: bash examples/pretraining/prepare_sentencepiece.sh train.txt valid.txt "
        "mine && bash examples/pretraining/from_scratch_small.sh mine checkpoints",
    ]


def _attacked(log: Path) -> dict[str, str]:
    found = list(logged(log, "valid"))
    if not found:
        raise DemoError(f"nothing was measured: see {log}")
    return found[-1]
