"""Fine-tuning a real encoder, plainly and with ALUM: the steps, and what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import Runner, Stages, Step, share_of_bar, share_of_updates
from options import Scale

METHODS = {"plain": "plain", "ALUM": "alum"}  # names in the report, and train.sh's words
CLEAN, HEADLINE = "clean.accuracy", "l2.accuracy.0.03"
SIGNIFICANT = 0.05
_TRAINING_SECONDS = {"plain": 45.0, "ALUM": 100.0}


def stages(scale: Scale, output: Path, seed: int) -> Stages:
    """The steps; those of a stage run side by side."""
    fetched, encoder, data = output / "fetched", output / "encoder", output / "data"
    updates = scale.epochs * math.ceil(scale.train / scale.batch)
    sizes = {"train": scale.train, "valid": scale.valid, "test": scale.test}
    fetch = ["python", "examples/demo/fetch.py", str(fetched)]
    fetch += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    tables = [word for name in sizes for word in (f"--{name}", f"{fetched}/{name}.tsv")]
    prepare = [
        *("alum-prepare", *tables),
        *("--columns", "text", "--label", "label", "--vocabulary", str(encoder)),
        *("--output", str(data)),
    ]  # fmt: skip
    schedule = [
        *("--seed", str(seed), "--max-epoch", str(scale.epochs), "--max-update", str(updates)),
        *("--total-num-update", str(updates), "--warmup-updates", str(max(1, updates // 10))),
        *("--batch-size", str(scale.batch), "--num-workers", "0", "--log-format", "json"),
        *("--log-interval", "1"),
    ]  # fmt: skip
    checkpoints = {
        name: f"{name}={data / word / 'checkpoint_best.pt'}" for name, word in METHODS.items()
    }
    training = [
        Step(
            word, f"fine-tuning, {name}", ("bash", str(data / "train.sh"), word, *schedule),
            _TRAINING_SECONDS[name], data / word, resumes=True, share=share_of_updates(updates),
        )
        for name, word in METHODS.items()
    ]  # fmt: skip

    def attack(*names: str) -> tuple[str, ...]:
        return (
            *("alum-robustness", "--quick", "--cpu", "--path", *(checkpoints[n] for n in names)),
            *("--data", str(data), "--subset", "test", "--parts", "greedy", "l2"),
            *("--examples", str(scale.test), "--attack-examples", str(scale.attacked)),
            *("--resamples", "1000", "--output", str(output / "robustness")),
        )  # fmt: skip

    attacks = [
        Step(
            f"attack-{word}",
            f"attacking {name}",
            attack(name),
            90,
            resumes=True,
            share=share_of_bar,
        )
        for name, word in METHODS.items()
    ]
    report, picture = output / "robustness" / "report.json", output / "demo.png"
    return [
        [Step("fetch", "fetching an encoder and film reviews", tuple(fetch), 8, fetched)],
        [
            Step(
                "convert", "converting the encoder to fairseq's format",
                ("alum-convert", "from-hf", str(fetched / "encoder"), str(encoder)), 7, encoder,
            )
        ],
        [Step("prepare", "encoding the reviews", tuple(prepare), 6, data)],
        training,
        attacks,
        [Step("compare", "comparing the two", attack(*METHODS), 12, report)],
        [
            Step(
                "picture", "drawing the picture",
                ("python", "examples/demo/picture.py", str(report), str(picture)), 3, picture,
            )
        ],
    ]  # fmt: skip


def measure(report: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """A measure of the plain and of the ALUM model, and the adjusted p of the difference."""
    found = next(one for one in report["measures"] if one["key"] == key)
    plain, alum = (found["values"][name]["value"] for name in METHODS)
    return plain, alum, found["comparisons"][0]["p_adjusted"]


def verdict(plain: float, alum: float, p: float) -> str:
    """Who won; the numbers are shares of right answers under attack, in percent."""
    if p >= SIGNIFICANT or plain == alum:
        return "no winner"
    return "ALUM" if alum > plain else "plain training"


def closing(scale: Scale, output: Path, runner: Runner) -> list[str]:
    """What was done, who won, at what accuracy, what it cost, where the report is, what is next."""
    report = json.loads((output / "robustness" / "report.json").read_text(encoding="utf-8"))
    plain, alum, p = measure(report, HEADLINE)
    clean_plain, clean_alum, clean_p = measure(report, CLEAN)
    spent = {name: runner.spent(word) for name, word in METHODS.items()}
    ratio = spent["ALUM"]["cpu"] / spent["plain"]["cpu"]
    memory = max(one["memory"] for one in spent.values()) / 1e9
    return [
        f"Done: a 22M-parameter encoder learnt from {scale.train} sentences whether a film is "
        "praised, plainly and with ALUM.",
        f"More robust: {verdict(plain, alum, p)}. An attack on the embeddings leaves {alum:.0f}% "
        f"of ALUM's answers right and {plain:.0f}% of plain training's (p = {p:.2g}).",
        f"Without attack: {clean_alum:.1f}% (ALUM) and {clean_plain:.1f}% (plain) are right, "
        f"p = {clean_p:.2g}; a guess is right in 50%.",
        f"Cost: training with ALUM took {ratio:.1f} times as long ({spent['ALUM']['cpu']:.0f} s of "
        f"a processor core, plain {spent['plain']['cpu']:.0f} s), and {memory:.1f} GB.",
        f"Report: {output / 'robustness' / 'report.html'}  Picture: {output / 'demo.png'}",
        "Your own table: alum-prepare --train train.tsv --valid valid.tsv --columns text --label "
        f"label --vocabulary {output / 'encoder'} --output mine && bash mine/train.sh",
    ]
