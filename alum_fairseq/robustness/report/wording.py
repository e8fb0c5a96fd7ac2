"""How the numbers and texts of a report are worded, whatever it is written as."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from alum_fairseq.robustness.parts.part import title_of

SIGNIFICANT = 0.05

_SEPARATOR = "  "
_COLUMNS = 100  # of a terminal


def title(report: Mapping[str, Any]) -> str:
    """What the report is called."""
    *names, last = (model["name"] for model in report["models"])
    return "Robustness of " + (f"{', '.join(names)} and {last}" if names else last)


def subject(report: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    data = report["data"]
    kind = {"choices": "multiple choice"}.get(data["kind"], data["kind"])
    seeds = ", ".join(
        f"{model['name']} ({_counted(len(model['checkpoints']), 'checkpoint')})"
        for model in report["models"]
    )
    examples = _counted(data["examples"], "example")
    return f"{seeds}; {examples} of {data['source']} ({kind})"


def method(report: Mapping[str, Any]) -> str:
    """How intervals and p-values came about."""
    resamples = report["resamples"]
    sentences = [
        f"In brackets: 95% intervals, by the percentile bootstrap ({resamples} resamples) over "
        "examples, and over the checkpoints of a model where it has several.",
    ]
    if len(report["models"]) > 1:
        tests = sum(len(measure["comparisons"]) for measure in report["measures"])
        baseline = report["models"][0]["name"]
        sentences += [
            f"Differences are to {baseline}, on the same examples; p by the paired approximate "
            f"randomisation test (Noreen 1989; Riezler and Maxwell 2005; {resamples} trials), "
            f"adjusted for {_counted(tests, 'comparison')} (false discovery rate, Benjamini and "
            "Hochberg 1995).",
            f"* marks p < {SIGNIFICANT}.",
        ]
        if by_seeds(report):
            sentences.append(
                "p over seeds: Welch's t-test over the checkpoints' values, not adjusted; it alone "
                "speaks of training again."
            )
    if report["data"]["tolerance"] is not None:
        tolerance = report["data"]["tolerance"]
        sentences.append(f"Within tolerance: at most {tolerance:g} from the right answer.")
    return " ".join(sentences)


def by_seeds(report: Mapping[str, Any]) -> bool:
    """Whether any models are compared by their checkpoints' values."""
    return any(
        one["p_seeds"] is not None
        for measure in report["measures"]
        for one in measure["comparisons"]
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def by_group(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The measures under their headings."""
    groups = groupby(report["measures"], key=lambda measure: measure["group"])
    return [(group, list(measures)) for group, measures in groups]


def columns(report: Mapping[str, Any]) -> list[str]:
    """What stands above the columns of the measures."""
    names, seeds = [model["name"] for model in report["models"]], by_seeds(report)
    found = ["measure", *names]
    for name in names[1:]:
        of = f"{name}: " if len(names) > 2 else ""
        found += [f"{of}difference", f"{of}p", *([f"{of}p over seeds"] if seeds else [])]
    return found


def heading(measure: Mapping[str, Any]) -> str:
    """A measure's title, with its unit."""
    unit = measure["unit"]
    return measure["title"] + (f" ({unit})" if unit else "")


def meaning(measure: Mapping[str, Any]) -> str:
    """What a measure says, and what is better."""
    better = measure["better"]
    return measure["meaning"] + (f" {better.capitalize()} is better." if better else "")


def number(value: float | None, measure: Mapping[str, Any]) -> str:
    """A value of a measure."""
    if value is None:
        return measure["undefined"]
    if measure["unit"] == "%":
        text = f"{value:.1f}"
    elif abs(value) >= 100:
        text = f"{value:.0f}"
    else:
        text = f"{value:.2g}" if abs(value) < 0.01 else f"{value:#.3g}"
    return text if float(text) else text.removeprefix("-")


def span(bounds: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    """An interval; empty where there is none."""
    low, high = bounds["low"], bounds["high"]
    if low is None and (high is None or measure["undefined"] == "-"):
        return ""
    return f"[{number(low, measure)}, {number(high, measure)}]"


def difference(comparison: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    """A difference with its sign."""
    value = comparison["difference"]
    if value is None:
        return "-"
    return ("+" if value > 0 else "") + number(value, measure)


def p_value(p: float | None) -> str:
    """A p-value to three decimals."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def mark(comparison: Mapping[str, Any]) -> str:
    """A star where a difference is significant."""
    p = comparison["p_adjusted"]
    return "*" if p is not None and p < SIGNIFICANT else ""


def verdict(comparison: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    """``better`` or ``worse`` where a difference is significant and one way is better."""
    value = comparison["difference"]
    if not mark(comparison) or not value or not measure["better"]:
        return ""
    return "better" if (value > 0) == (measure["better"] == "higher") else "worse"


def cases(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The attacked examples of each attack and model, under a heading."""
    found = groupby(report["examples"], key=lambda one: (one["attack"], one["model"]))
    return [
        (f"{capitalized(visible(title_of(part)))}, {model}", list(examples))
        for (part, model), examples in found
    ]


def case(one: Mapping[str, Any]) -> str:
    """What happened to an attacked example, in a line."""
    return (
        f"Example {one['number']}, right answer {one['answer']}: "
        f"{_counted(one['edits'], 'word')} changed, "
        f"{one['queries']} {'query' if one['queries'] == 1 else 'queries'}"
    )


def sides(one: Mapping[str, Any]) -> list[tuple[str, list[list[tuple[str, bool]]]]]:
    """An attacked example before and after: what the model says, and the pieces of each text.

    A piece is a stretch of text, and whether it differs from the other side.
    """
    before, after = one["original"], one["attacked"]
    pairs = map(_pieces, before["texts"], after["texts"])
    return [
        (_answer(side["prediction"], side["confidence"]), list(texts))
        for side, texts in zip((before, after), zip(*pairs, strict=True), strict=True)
    ]


def _answer(prediction: str | float, confidence: float | None) -> str:
    if confidence is None:
        return f"{prediction:.3g}" if isinstance(prediction, float) else prediction
    return f"{prediction} ({confidence:.1%})"


def _pieces(before: str, after: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    left, right = (re.findall(r"\s+|\S+", text) for text in (before, after))
    found: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        for pieces, words in zip(found, (left[i:j], right[k:m]), strict=True):
            if words:
                pieces.append(("".join(words), kind != "equal"))
    return found


def settings(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings and the versions of the software, as text."""
    versions = {f"version of {name}": version for name, version in report["versions"].items()}
    for name, value in [*report["settings"].items(), *versions.items()]:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def capitalized(text: str) -> str:
    """A text that begins with a capital, and is else as it was."""
    return text[:1].upper() + text[1:]


def visible(text: object) -> str:
    """A text in one line whose control and invisible characters show as their code points.

    Such as could end a line, colour a terminal, or reverse the direction of what follows. The
    joiners that emoji and some scripts need stay.
    """
    return "".join(map(_visible, str(text)))


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if hidden and character not in "\u200c\u200d":
        return f"<U+{ord(character):04X}>"
    return character


def shortened(text: str, length: int) -> str:
    """A text of at most that many visible characters."""
    text = visible(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def table(report: Mapping[str, Any]) -> str:
    """The measures for a terminal: with intervals where they fit into 100 columns."""
    whole = _aligned(_rows(report, intervals=True))
    fits = max(map(len, whole.splitlines())) <= _COLUMNS
    return whole if fits else _aligned(_rows(report, intervals=False))


def _rows(report: Mapping[str, Any], intervals: bool) -> Iterator[list[str]]:
    """The cells of each row; of a group, its heading alone."""
    names = [model["name"] for model in report["models"]]
    compared = len(names) == 2
    yield ["", *(shortened(name, 22) for name in names), *(["diff.", "p"] if compared else [])]
    for group, measures in by_group(report):
        yield [visible(group)]
        for measure in measures:
            stars = {one["model"]: mark(one) for one in measure["comparisons"]}
            row = [_SEPARATOR + shortened(heading(measure), 40)]
            for name, value in measure["values"].items():
                bounds = span(value, measure) if intervals else ""
                found = f"{number(value['value'], measure)} {bounds}".rstrip()
                row.append(found + stars.get(name, ""))
            for one in measure["comparisons"] if compared else ():
                row += [difference(one, measure), p_value(one["p_adjusted"])]
            yield row


def _aligned(rows: Iterator[list[str]]) -> str:
    """Rows of cells in columns, the first to the left, between rules."""
    head, *others = rows
    columns = zip(*(row for row in (head, *others) if len(row) > 1), strict=True)
    widths = [max(map(len, column)) for column in columns]

    def line(row: Sequence[str]) -> str:
        right = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))
        return _SEPARATOR.join([row[0].ljust(widths[0]), *right]).rstrip()

    rule = "-" * (sum(widths) + len(_SEPARATOR) * (len(widths) - 1))
    return "\n".join([line(head), rule, *map(line, others), rule])
