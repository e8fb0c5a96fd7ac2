"""Fine-tuning a real encoder, plainly and with ALUM: the steps, and what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import Runner, Stages, Step, share_of_bar, share_of_updates
from options import Scale

from alum_fairseq.robustness.report import wording

METHODS = {"plain": "plain", "ALUM": "alum"}  # names in the report, and train.sh's words
CLEAN = "clean.accuracy"  # a measure of the report
ATTACKS = {"moved embeddings": "l2.area", "misspelt words": "greedy.accuracy"}
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
        *("--batch-size", str(scale.batch), "--update-freq", "1"),
        *("--num-workers", "0", "--log-format", "json", "--log-interval", "1"),
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

    def attack(folder: Path, *names: str) -> tuple[str, ...]:
        return (
            *("alum-robustness", "--quick", "--cpu", "--path", *(checkpoints[n] for n in names)),
            *("--data", str(data), "--subset", "test", "--parts", "greedy", "l2"),
            *("--examples", str(scale.test), "--attack-examples", str(scale.attacked)),
            *("--radii", "0.01", "0.02", "0.04"),
            *("--resamples", "1000", "--output", str(folder)),
        )  # fmt: skip

    attacks = [
        Step(
            f"attack-{word}",
            f"attacking {name}",
            attack(output / "attacks" / word, name),
            90,
            resumes=True,
            share=share_of_bar,
        )
        for name, word in METHODS.items()
    ]
    both, picture = output / "robustness", output / "demo.png"
    # What was measured of each is not measured again.
    join = 'mkdir -p "$0" && cp -r "$1"/*/work "$0" && shift && "$@"'
    joined = ("bash", "-c", join, str(both), str(output / "attacks"))
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
        [Step("compare", "comparing the two", joined + attack(both, *METHODS), 12, both)],
        [
            Step(
                "picture", "drawing the picture",
                ("python", "examples/demo/picture.py", str(both / "report.json"), str(picture)),
                3, picture,
            )
        ],
    ]  # fmt: skip


def measure(report: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A measure of the report."""
    return next(one for one in report["measures"] if one["key"] == key)


def values(report: Mapping[str, Any], key: str) -> dict[str, float]:
    """A measure's value for each method."""
    found = measure(report, key)["values"]
    return {name: found[name]["value"] for name in METHODS}


def winner(report: Mapping[str, Any], attack: str) -> str | None:
    """The method whose model surely keeps more right answers; None if neither does."""
    comparison = measure(report, attack)["comparisons"][0]
    if not wording.is_sure(comparison):
        return None
    return "ALUM" if comparison["difference"] > 0 else "plain"


def closing(scale: Scale, output: Path, runner: Runner) -> list[str]:
    """What was done, who won, at what accuracy, what it cost, where the report is, what is next."""
    report = json.loads((output / "robustness" / "report.json").read_text(encoding="utf-8"))
    clean = values(report, CLEAN)
    found = "; ".join(_finding(report, name, key) for name, key in ATTACKS.items())
    spent = {name: runner.spent(word) for name, word in METHODS.items()}
    ratio = spent["ALUM"]["cpu"] / spent["plain"]["cpu"]
    memory = max(one["memory"] for one in spent.values()) / 1e9
    return [
        f"Done: a 22M-parameter encoder learnt from {scale.train} sentences whether a film is "
        "praised, plainly and with ALUM.",
        f"More robust: {found}.",
        f"Without attack: {clean['ALUM']:.1f}% (ALUM) and {clean['plain']:.1f}% (plain) are right "
        f"({_p(report, CLEAN)}); a guess is right in 50%.",
        f"Cost: training with ALUM took {ratio:.1f} times as long ({spent['ALUM']['cpu']:.0f} s of "
        f"a processor core, plain {spent['plain']['cpu']:.0f} s), and {memory:.1f} GB.",
        f"Report: {output / 'robustness' / 'report.html'}  Picture: {output / 'demo.png'}",
        "Your own table: alum-prepare --train train.tsv --valid valid.tsv --columns text --label "
        f"label --vocabulary {output / 'encoder'} --output mine && bash mine/train.sh",
    ]


def _finding(report: Mapping[str, Any], name: str, key: str) -> str:
    left = values(report, key)
    return (
        f"against {name} {winner(report, key) or 'not sure'} ({left['ALUM']:.1f}% right answers "
        f"left with ALUM, {left['plain']:.1f}% without, {_p(report, key)})"
    )


def _p(report: Mapping[str, Any], key: str) -> str:
    found = wording.p_value(measure(report, key)["comparisons"][0]["p_adjusted"])
    return f"p = {found}".replace("= <", "< ")
