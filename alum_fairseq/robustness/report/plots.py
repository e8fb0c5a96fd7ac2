"""The pictures of a report: the same numbers give the same bytes."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from alum_fairseq.robustness.parts.part import Axis, curve_look
from alum_fairseq.robustness.report import wording
from alum_fairseq.robustness.report.wording import shortened

# Okabe and Ito's colours, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color/),
# each with its own mark and line, for those who see or print none.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKS = "os^Dvp"
_LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))

# Used for nothing else, so that a page can put its own in their place.
INK, GRID, PAPER = "#24292e", "#d9dee2", "#fefefe"

_SIZE = (4.6, 3.3)  # inches: at the width of a telephone the text is still legible
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "alum",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is one
    "xtick.color": INK,
    "ytick.color": INK,
}

Figure = Any
_Draw = Callable[[Any, Mapping[str, Any]], None]


def overview(report: Mapping[str, Any]) -> dict[str, Any]:
    """The right answers that each model keeps under each attack, side by side; see figures."""
    shown = wording.glance(report)
    height = 0.9 + len(shown) * (0.24 + 0.13 * len(report["models"]))
    draw = partial(_overview, shown)
    return _drawn(report, draw, _of_overview(report), (_SIZE[0], height))


def figures(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every picture that a report has the numbers for.

    Returns:
        By name, in the order of reading: the bytes of ``png`` and ``svg``, and ``caption``, which
        says what it shows, for those who read it and those who cannot see it.
    """
    found = {"overview": overview(report)}
    for name, curve in report["curves"].items():
        title, axis = curve_look(name)
        right = wording.right_answers(report)
        draw = partial(_curve, title, axis, curve)
        caption = axis.caption.replace("{right}", right)
        if curve["examples"] != report["data"]["examples"]:
            caption += (
                f" Of the {report['data']['examples']:,} examples {curve['examples']:,} were "
                "attacked: the curves begin at the accuracy on these."
            )
        found[name.replace(" ", "-")] = _drawn(report, draw, caption)
    if report["reliability"]:
        caption = (
            "How often the model is right (up) when it is that sure (right); larger dots: more "
            "examples. On the dotted line confidence is accuracy."
        )
        found["reliability"] = _drawn(report, _reliability, caption)
    return found


def _drawn(
    report: Mapping[str, Any], draw: _Draw, caption: str, size: tuple[float, float] = _SIZE
) -> dict[str, Any]:
    for library in ("matplotlib", "PIL"):  # fairseq lets everyone report every detail
        logging.getLogger(library).setLevel(logging.WARNING)
    import matplotlib.style
    from matplotlib.figure import Figure  # not pyplot: nothing global, no display

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), report)
        found: dict[str, Any] = {"caption": caption}
        for kind, metadata in (
            ("png", {"Software": None}),
            ("svg", {"Creator": None, "Date": None, "Format": None, "Type": None}),
        ):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
            found[kind] = buffer.getvalue()
    return found


def _looks(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, dict[str, str]]]:
    """For each model its name, its color, its line; and its mark, of its color and with its label.

    A label that begins with an underscore would be kept out of the legend.
    """
    looks = cycle(zip(COLORS, _MARKS, _LINES, strict=True))
    for model, (color, mark, line) in zip(report["models"], looks, strict=False):
        name = model["name"]
        label = "\u200b" * name.startswith("_") + shortened(name, 28)
        yield name, color, line, {"marker": mark, "color": color, "label": label}


def _of_overview(report: Mapping[str, Any]) -> str:
    right = wording.capitalized(wording.right_answers(report))
    caption = f"{right}, with 95% intervals; further right is better."
    if any(measure["comparisons"] for measure in report["measures"]):
        caption += (
            f" At the right: how many points more than {report['models'][0]['name']}. Of an attack "
            "of several strengths, the middle one."
        )
    return caption


def _overview(shown: Sequence[Mapping[str, Any]], axes: Any, report: Mapping[str, Any]) -> None:
    models = len(report["models"])
    for number, (name, color, _, mark) in enumerate(_looks(report)):
        shift = (number - (models - 1) / 2) * 0.6 / max(models, 2)
        places = [row + shift for row in range(len(shown))]
        values = [measure["values"][name] for measure in shown]
        found, lows, highs = ([one[key] for one in values] for key in ("value", "low", "high"))
        axes.plot(found, places, linestyle="none", markersize=4, clip_on=False, **mark)
        axes.hlines(places, lows, highs, color=color, lw=1.4)
        for place, measure in zip(places, shown, strict=True):
            for one in measure["comparisons"]:
                if one["model"] == name:
                    _beside(axes, place, one, measure)
    axes.set_yticks(range(len(shown)), [_row(measure) for measure in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{wording.right_answers(report)} (%)")
    axes.figure.legend(loc="outside upper left", ncols=2)


def _row(measure: Mapping[str, Any]) -> str:
    name, *detail = wording.short_name(measure["group"], measure["title"])
    what = [shortened(part, 16) for part in detail]
    return f"{shortened(name, 30)}\n{', '.join([*what, wording.examples(measure)])}"


def _beside(
    axes: Any, place: float, comparison: Mapping[str, Any], measure: Mapping[str, Any]
) -> None:
    """Write a difference at the right of its row."""
    sure = wording.is_sure(comparison)
    text = f"{wording.difference(comparison, measure)} {wording.verdict(comparison, measure)}"
    look = {"weight": "bold"} if sure else {"alpha": 0.6}
    where = {"xycoords": axes.get_yaxis_transform(), "xytext": (8, 0)}
    axes.annotate(
        text, (1, place), textcoords="offset points", va="center", fontsize=8, **where, **look
    )


def _curve(
    title: str, axis: Axis, curve: Mapping[str, Any], axes: Any, report: Mapping[str, Any]
) -> None:
    first = int(axis.logarithmic)  # which has no place for the 0 in front
    x = [axis.scale * place for place in curve["x"][first:]]
    for model, color, line, mark in _looks(report):
        found = curve["models"][model]
        y, low, high = (found[key][first:] for key in ("y", "low", "high"))
        axes.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
        if axis.logarithmic:
            dot = {"marker": mark.pop("marker"), "linestyle": "none", "markersize": 4}
            axes.plot(x[:1], found["y"][:1], color=color, clip_on=False, zorder=3, **dot)
        axes.plot(x, y, linestyle=line, markersize=4, **mark)
    if axis.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlim(x[0], x[-1])
    else:
        axes.set_xlim(left=0)
        axes.set_xticks(x)
    axes.set_xlabel(axis.label)
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{wording.right_answers(report)} of {wording.examples(curve)} (%)")
    axes.set_title(title)
    axes.legend(loc="best")


def _reliability(axes: Any, report: Mapping[str, Any]) -> None:
    axes.plot([0, 100], [0, 100], color=INK, lw=1, ls=":")
    for name, color, line, mark in _looks(report):
        bins = [one for one in report["reliability"][name] if one["count"]]
        total = sum(one["count"] for one in bins)
        x, y = ([100 * one[key] for one in bins] for key in ("confidence", "accuracy"))
        sizes = [8 + 120 * one["count"] / total for one in bins]
        axes.plot(x, y, color=color, linestyle=line, lw=1)
        axes.scatter(x, y, sizes, alpha=0.8, lw=0, clip_on=False, **mark)
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 101)
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel(f"{wording.right_answers(report)} of {wording.examples(report['data'])} (%)")
    axes.set_title("Reliability")
    legend = axes.legend(loc="best")
    for handle in legend.legend_handles:
        handle.set_sizes([20])
