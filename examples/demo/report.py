"""The demo's table and picture."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from alum_fairseq.adversarial.presets import get_preset

PLAIN, ALUM = "plain", "ALUM"
_COLORS = {PLAIN: "#5b6770", ALUM: "#c8553d"}


def table(results: dict[str, Any]) -> str:
    """Pre-training: what the two models know, and how easily they are misled."""
    models = results["models"]
    rows = [
        ["", "perplexity", "... under", "perplexity", "gain of", "training"],
        ["pre-training", "clean", "attack", "ratio", "the attack", "time"],
    ]
    for name in (PLAIN, ALUM):
        one = models[name]
        rows.append(
            [
                name,
                f"{one['perplexity']:.1f}",
                f"{one['perplexity_under_attack']:.1f}",
                f"{one['perplexity_under_attack'] / one['perplexity']:.2f}",
                f"{one['gain']:.0f}" if one["gain"] >= 10 else f"{one['gain']:.2g}",
                "-" if one["time_ratio"] is None else f"{one['time_ratio']:.1f}x",
            ]
        )
    return _aligned(rows)


def finetuning_table(results: dict[str, Any]) -> str:
    """Fine-tuning: either model in either way."""
    rows = [["", "", "accuracy", "... under"], ["pre-training", "fine-tuning", "(%)", "attack (%)"]]
    for name in (PLAIN, ALUM):
        for way in (PLAIN, ALUM):
            one = results["models"][name]["finetuned"][way]
            rows.append(
                [name, way, *map(_accuracy, (one["accuracies"], one["accuracies_under_attack"]))]
            )
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    """Columns, the first two rows of which are the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  "
        + row[0].ljust(widths[0])
        + "".join(
            "   " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        )
        for row in rows
    ]
    rule = "  " + "-" * (sum(widths) + 3 * (len(widths) - 1))
    return "\n".join([*lines[:2], rule, *lines[2:], rule])


def _accuracy(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{fmean(values):.1f} ({min(values):.1f}..{max(values):.1f})"


def explanation(results: dict[str, Any]) -> str:
    """What the reader of the table is looking at."""
    seeds = len(results["models"][PLAIN]["finetuned"][PLAIN]["accuracies"])
    epsilon = get_preset("calibrated").adversary.epsilon
    evidence = (
        "one fine-tuning of each: one seed is not evidence."
        if seeds == 1
        else f"mean and range over {seeds} seeds of fine-tuning,\n{'':14}of one pre-training each: "
        "a hint, not evidence."
    )
    return f"""\
  perplexity: on {results["test_tokens"]:,} tokens of files that training never saw (guessing by
              frequency alone: {results["unigram_perplexity"]:.0f}); the same masks for both models.
  attack:     the embeddings of every batch are moved, by at most 0.3 of their root mean square a
              coordinate, in the direction that changes the predictions most; three steps, and
              stronger than what ALUM was trained with; the same attack for both models. On
              fine-tuned models: one step, as in ALUM fine-tuning ({epsilon:g}, on average).
  gain:       the divergence that the attack causes / that of a random direction of the same norm.
              Around 1 an "attack" is noise; far above 1 it is an adversary.
  accuracy:   which of {len(results["classes"])} packages does a paragraph come from, on \
{results["test_examples"]:,} paragraphs of unseen files
              (always the same answer: {results["chance"]:.1f}); {evidence}
  time:       of the updates, as a ratio to plain. The adversary is on after the first
              {results["start_update"]:,} of {results["updates"]:,} updates."""


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the learning curves, the perplexities and the accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = results["models"]
    style = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "font.size": 10,
        "legend.frameon": False,
    }
    with plt.rc_context(style):
        figure, (curves, bars, accuracy) = plt.subplots(
            1,
            3,
            figsize=(14, 4.4),
            gridspec_kw={"width_ratios": [1.9, 1.3, 1.6]},
            layout="constrained",
        )
        for name in (PLAIN, ALUM):
            updates, perplexities = zip(*models[name]["curve"], strict=True)
            curves.plot(updates, perplexities, "o-", ms=4, color=_COLORS[name], label=name)
        start = results["start_update"]
        if 0 < start < results["updates"]:
            curves.axvline(start, color="0.75", lw=1, ls="--", zorder=0)
            curves.annotate(
                "adversary on", (start, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                textcoords="offset points", color="0.45", fontsize=9,
            )  # fmt: skip
        curves.set_yscale("log")
        curves.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        curves.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        curves.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        curves.set_xlim(left=0)
        curves.grid(axis="y", color="0.92")
        curves.set_xlabel("updates")
        curves.set_ylabel("perplexity of the validation split (log scale)")
        curves.set_title("Pre-training")
        curves.legend()

        for number, name in enumerate((PLAIN, ALUM)):
            values = [models[name]["perplexity"], models[name]["perplexity_under_attack"]]
            places = [0 + 0.4 * number, 1 + 0.4 * number]
            drawn = bars.bar(places, values, 0.37, color=_COLORS[name], label=name)
            bars.bar_label(drawn, fmt="%.0f", padding=2)
        bars.tick_params(axis="x", length=0)
        bars.set_xticks([0.2, 1.2], ["clean", "under attack"])
        bars.set_ylabel("perplexity of the test split")
        bars.set_title("Test perplexity")
        bars.margins(y=0.3)
        bars.legend(loc="upper left", ncols=2)

        ways = [(name, way) for name in (PLAIN, ALUM) for way in (PLAIN, ALUM)]
        for number, (name, way) in enumerate(ways):
            one = models[name]["finetuned"][way]
            for place, key, hatch in (
                (number - 0.2, "accuracies", ""),
                (number + 0.2, "accuracies_under_attack", "///"),
            ):
                values = one[key]
                drawn = accuracy.bar(
                    place, fmean(values), 0.37, color=_COLORS[way], edgecolor="white", hatch=hatch
                )
                accuracy.plot([place] * len(values), values, "o", ms=4, color="black", mfc="white")
                accuracy.bar_label(drawn, fmt="%.0f", padding=5)
        accuracy.axhline(results["chance"], color="0.4", lw=1, ls=":")
        accuracy.set_xticks(range(4), [f"{name}\n{way}" for name, way in ways])
        accuracy.tick_params(axis="x", length=0)
        accuracy.set_ylim(bottom=0)
        accuracy.margins(y=0.15)
        accuracy.set_ylabel("test accuracy: which package? (%)")
        accuracy.set_xlabel(
            "pre-training (above), fine-tuning (below)\n"
            "hatched: under attack; circles: seeds; dotted: chance"
        )
        accuracy.set_title("Fine-tuning")
        aside = path.with_name("." + path.name)
        figure.savefig(aside, dpi=130, format="png")
        plt.close(figure)
    aside.replace(path)
