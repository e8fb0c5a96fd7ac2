"""The picture of the README: right answers under attack, plain training against ALUM.

python examples/evidence/overview.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ledger
import pictures
from summary import Results, current, measure

from alum_fairseq.robustness.report.plots import COLORS, INK

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "evidence" / "results.jsonl"
TASKS = {"sst2": "SST-2 (sentiment)", "sick-e": "SICK (entailment)"}
NAMES = {"plain": "plain fine-tuning", "calibrated": "fine-tuning with ALUM"}
ATTACKS = {
    "clean.accuracy": "no attack",
    "noise.0.2": "typing mistakes",
    "greedy.accuracy": "worst misspellings",
    "linf.area": "moved embeddings",
}


def results() -> Results:
    """The runs of the study of fine-tuning."""
    return Results(current(ledger.read(RESULTS), "finetuning"))


def bars(found: Results, task: str) -> pictures.Panel:
    """Two bars for each attack; a line from the lowest seed to the highest."""

    def panel(axis: Any) -> None:
        for number, (method, name) in enumerate(NAMES.items()):
            seeds = [list(found.values(method, task, measure(key)).values()) for key in ATTACKS]
            means = [sum(values) / len(values) for values in seeds]
            places = [place + 0.4 * number - 0.2 for place in range(len(means))]
            ends = [
                [mean - min(values) for mean, values in zip(means, seeds, strict=True)],
                [max(values) - mean for mean, values in zip(means, seeds, strict=True)],
            ]
            axis.bar(places, means, 0.36, yerr=ends, color=COLORS[number], label=name,
                     error_kw={"elinewidth": 0.8, "ecolor": INK})  # fmt: skip
            for place, mean, above in zip(places, means, ends[1], strict=True):
                axis.annotate(f"{mean:.0f}", (place, mean + above + 1), ha="center")
        axis.set_xticks(range(len(ATTACKS)), [text.replace(" ", "\n") for text in ATTACKS.values()])
        axis.set_ylim(0, 100)
        axis.set_ylabel("right answers (%)")
        axis.grid(axis="x", visible=False)

    return panel


def main(argv: list[str]) -> None:
    """Draw it."""
    path = Path(argv[0]) if argv else ROOT / "docs" / "images" / "robustness.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = results()
    pictures.draw(path, [(title, bars(found, task)) for task, title in TASKS.items()])


if __name__ == "__main__":
    main(sys.argv[1:])
