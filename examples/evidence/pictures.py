"""The figures: metric and robustness against cost, accuracy against radius, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from summary import Difference, Estimate, Results

from alum_fairseq.files import whole_file
from alum_fairseq.robustness.plots import COLORS, GRID, INK

matplotlib.use("Agg")

import matplotlib.pyplot as plt

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "text.color": INK,
}
_WIDTH, _HEIGHT = 4.6, 3.4  # inches, of one panel
_RADII = np.geomspace(1e-3, 0.3, 80)


def draw(path: Path, panels: Sequence[tuple[str, Callable[[Any], None]]]) -> None:
    """Draw panels side by side into a PNG file.

    Args:
        path: of the file.
        panels: of each its title, and what draws it.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(_WIDTH * len(panels), _HEIGHT),
            squeeze=False,
            layout="constrained",
        )
        for axis, (title, panel) in zip(axes[0], panels, strict=True):
            panel(axis)
            axis.set_title(title)
        with whole_file(path) as aside:
            figure.savefig(aside, dpi=120, format="png")
        plt.close(figure)


def against_cost(
    costs: Mapping[str, float], gains: Mapping[str, Difference], what: str, unit: str
) -> Callable[[Any], None]:
    """A point a method: what it costs (right), what it brings (up), with intervals.

    Args:
        costs: of each method, as a multiple of plain training's.
        gains: of each method over plain training.
        what: is gained.
        unit: of that.
    """

    def panel(axis: Any) -> None:
        axis.axhline(0, color=INK, lw=0.8)
        axis.plot([1], [0], "*", ms=10, color=INK)
        axis.annotate("plain", (1, 0), xytext=(5, 4), textcoords="offset points")
        for number, (method, gain) in enumerate(gains.items()):
            estimate, color = gain.estimate, COLORS[number % len(COLORS)]
            ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            bars = None if math.isnan(estimate.low) else ends
            axis.errorbar(
                [costs[method]], [estimate.value], yerr=bars, fmt="o", ms=5, capsize=2,
                elinewidth=0.8, color=color,
            )  # fmt: skip
            axis.annotate(
                method, (costs[method], estimate.value), xytext=(5, 4),
                textcoords="offset points", fontsize=8, color=color,
            )  # fmt: skip
        axis.set_xlabel("time of training, plain = 1")
        axis.set_ylabel(f"{what} gained ({unit})")
        axis.margins(x=0.22, y=0.12)

    return panel


def over_radii(results: Results, task: str, norm: str) -> Callable[[Any], None]:
    """Accuracy left (up) when embeddings may move so far (right, logarithmic)."""

    def panel(axis: Any) -> None:
        for number, method in enumerate(results.methods):
            curves = [
                share_above(line["radii"][norm])
                for line in results.lines
                if line["task"] == task and line["method"] == method and norm in line["radii"]
            ]
            if curves:
                color = COLORS[number % len(COLORS)]
                axis.plot(_RADII, np.mean(curves, axis=0), color=color, label=method)
                if len(curves) > 1:
                    low, high = np.min(curves, axis=0), np.max(curves, axis=0)
                    axis.fill_between(_RADII, low, high, color=color, alpha=0.12, lw=0)
        axis.set_xscale("log")
        axis.set_ylim(0, 100)
        axis.set_xlabel(f"radius, times the embeddings' root mean square ({norm})")
        axis.set_ylabel("right answers left (%)")
        axis.legend(fontsize=8)

    return panel


def share_above(radii: Sequence[float | None]) -> np.ndarray:
    """The share, in percent, of examples that a perturbation of each radius does not break."""
    found = np.array([math.inf if radius is None else radius for radius in radii])
    return 100 * (found[None, :] > _RADII[:, None]).mean(1)


def learning(results: Results, task: str, key: str) -> Callable[[Any], None]:
    """A figure of the validation split (up) over updates (right); bands: from seed to seed."""

    def panel(axis: Any) -> None:
        for number, method in enumerate(results.methods):
            lines = [one for one in results.lines if (one["task"], one["method"]) == (task, method)]
            curves = [
                [(point["valid_num_updates"], point[key]) for point in line["curve"]]
                for line in lines
                if line["curve"] and key in line["curve"][0]
            ]
            if not curves:
                continue
            shortest = min(map(len, curves))
            found = np.array([curve[:shortest] for curve in curves])
            color = COLORS[number % len(COLORS)]
            updates, values = found[0, :, 0], found[:, :, 1]
            axis.plot(updates, values.mean(0), "o-", ms=3, color=color, label=method)
            if len(curves) > 1:
                low, high = values.min(0), values.max(0)
                axis.fill_between(updates, low, high, color=color, alpha=0.12, lw=0)
        axis.set_xlabel("updates")
        axis.set_ylabel(key.replace("valid_", "validation: "))
        axis.legend(fontsize=8)

    return panel


def ladder(rows: Mapping[str, Estimate], what: str) -> Callable[[Any], None]:
    """A row a method, with its value and interval, best seen at a glance."""

    def panel(axis: Any) -> None:
        for place, (_, estimate) in enumerate(rows.items()):
            ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            bars = None if math.isnan(estimate.low) else ends
            axis.errorbar(
                [estimate.value], [-place], xerr=bars, fmt="o", ms=5, capsize=2, color=COLORS[0]
            )
        axis.set_yticks([-place for place in range(len(rows))], list(rows))
        axis.set_xlabel(what)

    return panel
