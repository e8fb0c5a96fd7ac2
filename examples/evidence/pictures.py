"""The figures: metric and robustness against cost, accuracy against radius, learning curves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from summary import Difference, Estimate, Results

from alum_fairseq.files import whole_file
from alum_fairseq.robustness.report.plots import COLORS, GRID, INK, PAPER

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
}
_WIDTH = 4.2  # inches, of one panel
_HEIGHT = 3.4
_ROW = 0.28  # inches, of a row of a ladder
_LINE, _LETTER, _LINE_HEIGHT = 0.7, 0.075, 0.22  # inches, in the legend
_MARKS = "os^Dv"  # with six colours: thirty methods are told apart
_RADII = np.geomspace(1e-3, 0.3, 80)

Panel = Callable[[Any], None]


def draw(
    path: Path, panels: Sequence[tuple[str, Panel]], height: float = _HEIGHT, rows: bool = False
) -> None:
    """Draw panels side by side into a PNG file, with one legend under all of them.

    Args:
        path: of the file.
        panels: of each its title, and what draws it.
        height: inches of the panels.
        rows: the panels share what is written at their left.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets it report every font
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=rows)[0]
        entries: dict[str, Any] = {}
        for axis, (title, panel) in zip(axes, panels, strict=True):
            panel(axis)
            axis.set_title(title)
            handles, labels = axis.get_legend_handles_labels()
            entries = dict(zip(labels, handles, strict=True)) | entries
        width = _WIDTH * len(panels)
        if entries:
            columns = int(width / (_LINE + _LETTER * max(map(len, entries))))
            columns = min(len(entries), max(1, columns))
            figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)
            height += _LINE_HEIGHT * math.ceil(len(entries) / columns)
        figure.set_size_inches(width, height)
        with whole_file(path) as aside:
            figure.savefig(aside, dpi=120, format="png")


def against_cost(
    costs: Mapping[str, float], gains: Mapping[str, Difference], what: str, unit: str
) -> Panel:
    """A point a method: what it costs (right), what it brings (up), with intervals.

    Args:
        costs: of each method, as a multiple of plain training's.
        gains: of each method over plain training.
        what: is gained.
        unit: of that.
    """

    def panel(axis: Any) -> None:
        axis.axhline(0, color=INK, lw=0.8)
        axis.plot([1], [0], "*", ms=11, color=INK, label="plain")
        for number, (method, cost) in enumerate(costs.items()):
            if method not in gains:
                continue
            estimate = gains[method].estimate
            mark = _MARKS[(number + number // len(COLORS)) % len(_MARKS)]
            axis.errorbar(
                [cost], [estimate.value], yerr=_ends(estimate), fmt=mark, ms=6, capsize=2,
                elinewidth=0.8, color=COLORS[number % len(COLORS)], label=method,
            )  # fmt: skip
        axis.set_xlabel("FLOPs of training, plain = 1")
        axis.set_ylabel(f"{what} gained ({unit})")
        axis.margins(x=0.08, y=0.08)

    return panel


def _ends(estimate: Estimate) -> list[list[float]] | None:
    """How far an interval reaches to both sides of a value; None where that is not known."""
    if math.isnan(estimate.low):
        return None
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def over_radii(results: Results, methods: Sequence[str], task: str, norm: str) -> Panel:
    """Accuracy left (up) when embeddings may move so far (right, logarithmic)."""

    def panel(axis: Any) -> None:
        for number, method in enumerate(methods):
            curves = [
                share_above(line["radii"][norm])
                for line in results.of(method, task).values()
                if norm in line["radii"]
            ]
            if curves:
                _band(axis, _RADII, np.array(curves), number, method)
        axis.set_xscale("log")
        axis.set_xlim(_RADII[0], _RADII[-1])
        axis.set_ylim(0, 100)
        axis.set_xlabel("radius, in root mean squares of the embeddings")
        axis.set_ylabel("right answers left (%)")

    return panel


def share_above(radii: Sequence[float | None]) -> np.ndarray:
    """The share, in percent, of examples that a perturbation of each radius does not break.

    Args:
        radii: the smallest that broke each example; None: none did.
    """
    found = np.array([math.inf if radius is None else radius for radius in radii])
    return 100 * (found[None, :] > _RADII[:, None]).mean(1)


def learning(results: Results, methods: Mapping[str, str], task: str, key: str) -> Panel:
    """A measure of the validation split (up) over updates (right).

    Args:
        results: to draw.
        methods: by what the legend calls them; one without a curve keeps its colour.
        task: of the curves.
        key: of the measure, as fairseq logs it.
    """

    def panel(axis: Any) -> None:
        for number, (label, method) in enumerate(methods.items()):
            curves = [
                {point["valid_num_updates"]: point[key] for point in line["curve"] if key in point}
                for line in results.of(method, task).values()
            ]
            updates = sorted(set.intersection(*map(set, curves))) if curves else []
            if updates:
                found = np.array([[curve[update] for update in updates] for curve in curves])
                _band(axis, updates, found, number, label, marker="o", ms=3)
        axis.set_xlabel("updates")
        axis.set_ylabel(key.replace("valid_", "validation: "))

    return panel


def _band(
    axis: Any, x: Sequence[float] | np.ndarray, curves: np.ndarray, number: int, label: str,
    **look: Any,
) -> None:  # fmt: skip
    """The mean of curves (one a row), and the band from the lowest to the highest."""
    color = COLORS[number % len(COLORS)]
    axis.plot(x, curves.mean(0), color=color, label=label, **look)
    if len(curves) > 1:
        axis.fill_between(x, curves.min(0), curves.max(0), color=color, alpha=0.13, lw=0)


def ladder(rows: Mapping[str, Estimate], plain: Estimate) -> Panel:
    """A row a value of an option, with its measure and interval; plain training as a line."""

    def panel(axis: Any) -> None:
        for place, estimate in enumerate(rows.values()):
            axis.errorbar(
                [estimate.value], [place], xerr=_ends(estimate), fmt="o", ms=5, capsize=2,
                elinewidth=0.8, color=COLORS[0],
            )  # fmt: skip
        if plain.count:
            axis.axvline(plain.value, color=COLORS[1], ls="--", lw=1.2, label="plain training")
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)

    return panel


def ladder_height(rows: int) -> float:
    """Inches of a ladder of so many rows."""
    return 0.8 + _ROW * rows
