"""A report as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from alum_fairseq.robustness.report import wording
from alum_fairseq.robustness.report.plots import COLORS, GRID, INK, PAPER, captions

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        report: as :func:`alum_fairseq.robustness.report.summary.build_report` makes it.
        pictures: SVG by name, drawn into the page.
    """
    sentences = captions(report)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = wording.visible
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        names=[model["name"] for model in report["models"]],
        pictures=[
            {"name": name, "svg": inlined(name, svg, sentences[name]), "caption": sentences[name]}
            for name, svg in pictures.items()
        ],
        by_seeds=any(
            one["p_seeds"] is not None
            for measure in report["measures"]
            for one in measure["comparisons"]
        ),
        wording=wording,
    )


def inlined(name: str, svg: bytes, caption: str) -> str:
    """matplotlib's SVG as a part of a page: as wide as it may be, in the page's own colours.

    Its ids get the picture's name in front, since those of all pictures share a page.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in (
        (INK, "--ink"),
        (GRID, "--grid"),
        (PAPER, "--paper"),
        *((color, f"--color-{number}") for number, color in enumerate(COLORS)),
    ):
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)
