"""Draws what attacks leave of the accuracy of the two models.

python examples/demo/picture.py REPORT.json PICTURE.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from finetuning import ATTACKS, CLEAN, values, winner

from alum_fairseq.files import whole_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_COLORS = {"plain": "#5b6770", "ALUM": "#c8553d"}
_ROWS = {"no attack": CLEAN, **ATTACKS}


def title(report: Mapping[str, Any]) -> str:
    """The finding."""
    won = {
        name: [attack for attack, key in ATTACKS.items() if winner(report, key) == name]
        for name in _COLORS
    }
    if won["ALUM"] and not won["plain"]:
        return f"ALUM withstands {' and '.join(won['ALUM'])} better"
    if won["plain"]:
        return f"ALUM is no help here against {' and '.join(won['plain'])}"
    return "No sure difference under attack"


def drawn(report: Mapping[str, Any]) -> Figure:
    """A bar for each model without an attack and under two, and the finding above them."""
    with plt.rc_context({"font.size": 12}):
        figure, axes = plt.subplots(figsize=(7.2, 3.5), layout="constrained")
        for row, key in enumerate(_ROWS.values()):
            for (name, value), offset in zip(values(report, key).items(), (-0.2, 0.2), strict=True):
                axes.barh(row + offset, value, 0.36, color=_COLORS[name])
                label = f"{value:.0f}% {name}"
                axes.text(value + 1, row + offset, label, va="center", color=_COLORS[name])
        axes.set_yticks(range(len(_ROWS)), list(_ROWS))
        axes.invert_yaxis()
        axes.set_xlim(0, 118)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xlabel("right answers: is the film praised? (a guess: 50%)")
        figure.suptitle(title(report), fontsize=13, fontweight="bold")
    return figure


def _main(report: Path, picture: Path) -> None:
    figure = drawn(json.loads(report.read_text(encoding="utf-8")))
    with whole_file(picture) as aside:
        figure.savefig(aside, dpi=130, format="png")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
