"""How the numbers and texts of a report are worded, whatever it is written as."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from textwrap import wrap
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
    kind = {"choices": "multiple choice"}.get(data["kind"], data["kind"].replace("_", " "))
    seeds = ", ".join(
        f"{model['name']} ({_counted(len(model['checkpoints']), 'checkpoint')})"
        for model in report["models"]
    )
    return f"{seeds}; {examples(data)} of {data['source']} ({kind})"


def right_answers(report: Mapping[str, Any]) -> str:
    """What the model is measured by the share of."""
    kinds = {"span_prediction": "exact matches", "sequence_tagging": "right sentences"}
    return kinds.get(report["data"]["kind"], "right answers")


def method(report: Mapping[str, Any]) -> str:
    """How intervals and p-values came about."""
    resamples = report["resamples"]
    sentences = [
        f"In brackets: 95% intervals, by the percentile bootstrap ({resamples} resamples) over "
        "examples, and over the checkpoints of a model where it has several; at 0% and at "
        "100% the exact ones (Clopper and Pearson 1934).",
    ]
    if len(report["models"]) > 1:
        tests = sum(len(measure["comparisons"]) for measure in report["measures"])
        sentences += [
            f"Differences are to {report['models'][0]['name']}, on the same examples. p is twice "
            "the share of the resamples that lie on the smaller side of 0 (below 0.05 where the "
            f"interval leaves 0 out), then adjusted for {_counted(tests, 'comparison')} (false "
            f"discovery rate, Benjamini and Hochberg 1995). At {SIGNIFICANT} or more, a difference "
            "is not sure: it may be chance.",
        ]
        if by_seeds(report):
            sentences.append(
                "p over seeds: Welch's t-test over the checkpoints' values, not adjusted; it alone "
                "speaks of training again."
            )
    if report["data"]["tolerance"] is not None:
        tolerance = report["data"]["tolerance"]
        sentences.append(f"Within tolerance: at most {tolerance:g} from the right answer.")
    threshold = report["settings"].get("null_threshold")
    if threshold is not None:
        sentences.append(
            f"A question has no answer where that scores more than {threshold:g} above the best "
            "span (--null-threshold)."
        )
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


def examples(what: Mapping[str, Any]) -> str:
    """Of how many examples it is."""
    return _counted(what["examples"], "example")


def by_group(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The measures under their headings, which say of how many examples they are."""
    groups = groupby(report["measures"], key=lambda one: (one["group"], one["examples"]))
    return [
        (f"{group} ({examples(measures[0])})", measures)
        for (group, _), measures in ((key, list(found)) for key, found in groups)
    ]


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


def is_sure(comparison: Mapping[str, Any]) -> bool:
    """Whether a difference is significant, all comparisons of the report allowed for."""
    p = comparison["p_adjusted"]
    return p is not None and p < SIGNIFICANT


def verdict(comparison: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    """``better`` or ``worse`` (``higher`` or ``lower`` where neither is better); or not sure."""
    value = comparison["difference"]
    if not value:
        return ""
    if not is_sure(comparison):
        return "not sure"
    if not measure["better"]:
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) == (measure["better"] == "higher") else "worse"


def conclusions(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the report comes to: a sentence, and what it rests on.

    One for each model that is compared with the first; of a single model one.
    """
    every = {measure["key"]: measure for measure in report["measures"]}
    clean, attacked = every["clean.accuracy"], every.get("attacks.mean")
    if len(report["models"]) == 1:
        return [_of_one_model(report, clean, attacked)]
    right = right_answers(report)
    constant = [model["name"] for model in report["models"] if model.get("constant")]
    single = [model["name"] for model in report["models"] if len(model["checkpoints"]) == 1]
    return [
        _of_two_models(number, right, clean, attacked, constant, single)
        for number in range(len(clean["comparisons"]))
    ]


def _of_one_model(
    report: Mapping[str, Any], clean: Mapping[str, Any], attacked: Mapping[str, Any] | None
) -> tuple[str, str]:
    name, right = report["models"][0]["name"], right_answers(report)

    def said(measure: Mapping[str, Any]) -> str:
        found = measure["values"][name]
        return f"{number(found['value'], measure)}% (95% interval: {_to(found, measure)})"

    accuracy = f"{said(clean)} on {_counted(clean['examples'], 'unchanged example')}"
    if attacked is None:
        return f"{name} was not attacked, so nothing is known of its robustness.", (
            f"{capitalized(right)}: {accuracy}."
        )
    value = attacked["values"][name]["value"]
    constant = f"{_knows_nothing([name])}. " if report["models"][0].get("constant") else ""
    return (
        f"{constant}Under attack {name} keeps {number(value, attacked)}% {right}.",
        f"That is {_mean(attacked)}: {said(attacked)}. Without attack: {accuracy}.",
    )


def _of_two_models(
    place: int,
    right: str,
    clean: Mapping[str, Any],
    attacked: Mapping[str, Any] | None,
    constant: Sequence[str],
    single: Sequence[str],
) -> tuple[str, str]:
    accuracy = clean["comparisons"][place]
    model, baseline = accuracy["model"], accuracy["baseline"]

    def values(measure: Mapping[str, Any]) -> list[str]:
        return [number(measure["values"][name]["value"], measure) for name in (model, baseline)]

    found, other = values(clean)
    price = "No sure price in accuracy"
    if is_sure(accuracy):
        price = f"{'No' if accuracy['difference'] > 0 else 'The'} price in accuracy"
    price += (
        f": on {_counted(clean['examples'], 'unchanged example')} it is {found}% against {other}%, "
        f"{_points(accuracy, clean)}."
    )
    if attacked is None:
        return f"{model} and {baseline} were not attacked: neither is known to be robust.", price
    one, (found, other) = attacked["comparisons"][place], values(attacked)
    which = f"It is not sure which of {model} and {baseline} is more robust"
    if useless := [name for name in (baseline, model) if name in constant]:
        which = _knows_nothing(useless)
    elif is_sure(one):
        which = f"{model} is {'more' if one['difference'] > 0 else 'less'} robust than {baseline}"
    seeds = "The seeds of training of each give the same."
    if one["p_seeds"] is not None:
        seeds = f"Over the seeds of training, {_p(one['p_seeds'])} (Welch's t-test)."
    elif alone := [name for name in (baseline, model) if name in single]:
        which_is = alone[0] if len(alone) == 1 else "Each"
        seeds = f"{which_is} is a single training: another may give another result."
    return (
        f"{which}: under attack {model} keeps {found}% {right}, {baseline} {other}%.",
        f"That is {_points(one, attacked)}, {_mean(attacked)}. {seeds} {price}",
    )


def _knows_nothing(names: Sequence[str]) -> str:
    """Of models that never change their answer, and so are broken by no attack."""
    know, give = ("knows", "it gives") if len(names) == 1 else ("know", "they give")
    return f"{' and '.join(names)} {know} nothing: {give} one answer to every example"


def _mean(attacked: Mapping[str, Any]) -> str:
    return f"the mean over all attacks on {examples(attacked)}"


def _points(one: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    chance = "" if is_sure(one) or not one["difference"] else ", which may be chance"
    return (
        f"{difference(one, measure)} points (95% interval: {_to(one, measure)}; "
        f"{_p(one['p_adjusted'])} after adjusting for all comparisons{chance})"
    )


def _p(p: float) -> str:
    return f"p = {p_value(p)}".replace("= <", "< ")


def _to(bounds: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    return f"{number(bounds['low'], measure)} to {number(bounds['high'], measure)}"


def in_lines(report: Mapping[str, Any]) -> str:
    """The conclusions for a terminal."""
    return "\n".join(paragraph(f"{first} {rest}") for first, rest in conclusions(report))


def paragraph(text: str) -> str:
    """Text in lines for a terminal."""
    return "\n".join(wrap(visible(text), _COLUMNS))


def warnings_in_lines(report: Mapping[str, Any]) -> list[str]:
    """The warnings for a terminal."""
    return [paragraph(f"Warning: {warning}") for warning in report["warnings"]]


def glance(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the overview shows of each part: its main measures, whatever their values are."""
    return [one for _, measures in by_group(report) for one in measures if one["main"]]


def short_name(group: str, title: str) -> list[str]:
    """A measure's name in few words: its group, and what tells it from others of the group."""
    detail = title.partition(", ")[2] or title.partition(" on ")[2]
    group = capitalized(group.removeprefix("Attack on the "))
    return [group, detail] if detail else [group]


def cases(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The attacked examples of each attack and model, under a heading."""
    found = groupby(report["examples"], key=lambda one: (one["attack"], one["model"]))
    return [
        (f"{capitalized(visible(title_of(part)))}, {model}", list(cases))
        for (part, model), cases in found
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
    whole = aligned(_rows(report, intervals=True))
    fits = max(map(len, whole.splitlines())) <= _COLUMNS
    return whole if fits else aligned(_rows(report, intervals=False))


def _rows(report: Mapping[str, Any], intervals: bool) -> Iterator[list[str]]:
    """The cells of each row; of a group, its heading alone."""
    names = [model["name"] for model in report["models"]]
    compared = len(names) == 2
    yield ["", *(shortened(name, 22) for name in names), *(["diff.", "p"] if compared else [])]
    for group, measures in by_group(report):
        yield [visible(group)]
        for measure in measures:
            sure = {one["model"]: one for one in measure["comparisons"] if is_sure(one)}
            row = [_SEPARATOR + shortened(heading(measure), 40)]
            for name, value in measure["values"].items():
                bounds = span(value, measure) if intervals else ""
                found = f"{number(value['value'], measure)} {bounds}".rstrip()
                said = f"{verdict(sure[name], measure)} " if name in sure and not compared else ""
                row.append(said + found)
            for one in measure["comparisons"] if compared else ():
                row += [difference(one, measure), p_value(one["p_adjusted"])]
            yield row


def aligned(rows: Iterator[list[str]]) -> str:
    """Rows of cells in columns, the first to the left, between rules."""
    head, *others = rows
    columns = zip(*(row for row in (head, *others) if len(row) > 1), strict=True)
    widths = [max(map(len, column)) for column in columns]

    def line(row: Sequence[str]) -> str:
        right = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))
        return _SEPARATOR.join([row[0].ljust(widths[0]), *right]).rstrip()

    rule = "-" * (sum(widths) + len(_SEPARATOR) * (len(widths) - 1))
    return "\n".join([line(head), rule, *map(line, others), rule])
