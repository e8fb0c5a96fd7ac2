"""A report on disk: for programs, for a repository or a paper's appendix, and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from alum_fairseq.files import whole_file
from alum_fairseq.robustness.report import wording
from alum_fairseq.robustness.report.compare import about, leaderboard
from alum_fairseq.robustness.report.plots import COLORS, GRID, INK, PAPER, figures, overview

_TEMPLATES = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "autoescape": True,
    "undefined": StrictUndefined,
    "loader": FileSystemLoader(Path(__file__).parent),
}


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``report.html``, and each picture as PNG and SVG.

    Each file is written whole or not at all; the same report gives the same bytes. The folder is
    made if need be, and other files in it are left alone.

    Raises:
        UsageError: the folder cannot be written to.
    """
    drawn = figures(report)
    content = {
        "report": report,
        "conclusions": wording.conclusions(report),
        "columns": wording.columns(report),
        "by_seeds": wording.by_seeds(report),
        "leaderboard": leaderboard(report) if len(report["models"]) > 2 else [],
        "pictures": {
            name: {"svg": _inlined(name, picture), "caption": picture["caption"]}
            for name, picture in drawn.items()
        },
        "wording": wording,
    }
    files = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": _rendered("page.md.jinja", content, finalize=_in_markdown),
        "report.html": _rendered("page.html.jinja", content, finalize=_in_html),
    }
    contents = {name: text.encode("utf-8", "replace") for name, text in files.items()}
    for name, picture in drawn.items():
        contents |= _files_of(name, picture)
    _write(contents, folder)


def write_leaderboard(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``leaderboard.md``, and the overview of all models as PNG and SVG.

    Raises:
        UsageError: the folder cannot be written to.
    """
    drawn = overview(report)
    content = {
        "leaderboard": leaderboard(report),
        "about": about(report),
        "caption": drawn["caption"],
        "report": report,
    }
    text = _rendered("leaderboard.md.jinja", content, finalize=_in_markdown)
    files = {"leaderboard.md": text.encode("utf-8", "replace"), **_files_of("overview", drawn)}
    _write(files, folder)


def _files_of(name: str, picture: Mapping[str, Any]) -> dict[str, bytes]:
    return {f"{name}.{kind}": picture[kind] for kind in ("png", "svg")}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        with whole_file(folder / name) as file:
            file.write_bytes(content)


def _rendered(template: str, content: Mapping[str, Any], **more: Any) -> str:
    return Environment(**_TEMPLATES, **more).get_template(template).render(content)


def _in_html(value: Any) -> Any:
    """What a template puts out: Markup as it is, and all else visible (the engine escapes it)."""
    return value if isinstance(value, Markup) else wording.visible(value)


def _in_markdown(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(escaped(value))


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


def _inlined(name: str, picture: Mapping[str, Any]) -> Markup:
    """matplotlib's SVG as a part of a page: as wide as it may be, in the page's own colours.

    Its ids get the picture's name in front, since those of all pictures share a page.
    """
    text = picture["svg"].decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    variables = {INK: "ink", GRID: "grid", PAPER: "paper"}
    variables |= {color: f"color-{number}" for number, color in enumerate(COLORS)}
    for color, variable in variables.items():
        text = text.replace(color, f"var(--{variable})")
    label = f'<svg role="img" aria-label="{picture["caption"]}" '
    return Markup(text.replace("<svg ", label, 1))
