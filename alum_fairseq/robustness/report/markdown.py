"""A report as Markdown, for a repository or a paper's appendix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alum_fairseq.robustness.report import wording
from alum_fairseq.robustness.report.plots import captions


def markdown(report: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The report in GitHub's Markdown.

    Args:
        report: as :func:`alum_fairseq.robustness.report.summary.build_report` makes it.
        pictures: the names of those that lie beside it, as PNG.
    """
    return "\n".join(
        [*_head(report), *_results(report, pictures), *_examples(report), *_end(report)]
    )


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {escaped(wording.title(report))}"
    yield ""
    yield f"Measured: {escaped(wording.subject(report))}."
    yield ""
    if report["warnings"]:
        yield "## Warnings"
        yield ""
        yield from (f"- {escaped(warning)}" for warning in report["warnings"])
        yield ""


def _results(report: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    names = [model["name"] for model in report["models"]]
    others = names[1:]
    seeds = any(one["p_seeds"] is not None for m in report["measures"] for one in m["comparisons"])
    head = ["measure", *names]
    for other in others:
        of = f"{other}: " if len(others) > 1 else ""
        head += [f"{of}difference", f"{of}p", *([f"{of}p over seeds"] if seeds else [])]
    yield "## Measures"
    yield ""
    yield " ".join(escaped(sentence) for sentence in wording.method(report))
    for group, measures in wording.by_group(report):
        yield from ("", f"### {escaped(group)}", "")
        yield from _table(head, (_cells(measure, seeds) for measure in measures))
        yield ""
        for measure in measures:
            better = wording.direction(measure)
            meaning = " ".join(filter(None, (measure["meaning"], better)))
            yield f"- {escaped(measure['title'])}: {escaped(meaning)}"
    yield ""
    yield "## Pictures"
    sentences = captions(report)
    for name in pictures:
        yield from ("", f"![{escaped(name)}]({name}.png)", "", escaped(sentences[name]))
    yield ""


def _cells(measure: Mapping[str, Any], seeds: bool) -> Iterator[str]:
    yield wording.heading(measure)
    for value in measure["values"].values():
        bounds = wording.span(value, measure)
        yield " ".join(filter(None, (wording.number(value["value"], measure), bounds)))
    for one in measure["comparisons"]:
        bounds = wording.span(one, measure)
        yield " ".join(filter(None, (wording.difference(one, measure), bounds)))
        yield wording.p_value(one["p_adjusted"]) + wording.mark(one)
        if seeds:
            yield wording.p_value(one["p_seeds"])


def _examples(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["examples"]:
        return
    yield "## Worst examples"
    yield ""
    yield "Where the fewest changes broke an answer that the model was surest of; changes in bold."
    for heading, examples in wording.cases(report):
        yield from ("", f"### {escaped(heading)}", "")
        yield from _table(["example", "original", "attacked"], map(_case, examples), escape=False)
    yield ""


def _case(one: Mapping[str, Any]) -> Iterator[str]:
    yield escaped(wording.case(one))
    pairs = wording.pairs(one)
    for side in ("original", "attacked"):
        said = wording.answer(one[side]["prediction"], one[side]["confidence"])
        yield "<br>".join([escaped(said), *("".join(map(_piece, pair[side])) for pair in pairs)])


def _piece(piece: tuple[str, bool]) -> str:
    text, changed = piece
    # Bold must begin and end with what is no blank.
    return f"<b>{escaped(text)}</b>" if changed and text.strip() else escaped(text)


def _end(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Settings"
    yield ""
    rows = [
        *report["settings"].items(),
        *((f"version of {k}", v) for k, v in report["versions"].items()),
    ]
    yield from _table(["setting", "value"], ([name, wording.plain(value)] for name, value in rows))
    yield ""
    rows = [
        (model["name"], checkpoint["path"], checkpoint["sha256"])
        for model in report["models"]
        for checkpoint in model["checkpoints"]
    ]
    yield from _table(["model", "checkpoint", "SHA-256"], rows)
    yield ""
    yield f"Made {escaped(report['time']['created'])}."
    yield ""


def _table(head: Sequence[str], rows: Any, escape: bool = True) -> Iterator[str]:
    def line(cells: Any) -> str:
        return "| " + " | ".join(map(escaped, cells) if escape else cells) + " |"

    yield line(head)
    yield "|" + " --- |" * len(head)
    yield from map(line, rows)


def escaped(text: object) -> str:
    """A text, in one line, that no part of is taken for Markdown or HTML."""
    found = wording.visible(text)
    found = found.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    found = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", found)
    found = re.sub(
        r"^([-+=]|\d+[.)])(?=[-=\s]|$)", lambda item: item[0][:-1] + "\\" + item[0][-1], found
    )
    return re.sub(
        r"(?i)(https?|ftp)://|\bwww\.", lambda link: link[0][:-1] + "\\" + link[0][-1], found
    )
