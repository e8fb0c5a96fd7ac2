"""A report on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alum_fairseq.files import whole_file
from alum_fairseq.robustness.report.markdown import markdown
from alum_fairseq.robustness.report.page import page
from alum_fairseq.robustness.report.plots import figures


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``report.html``, and each picture as PNG and SVG.

    Each file is written whole or not at all; the same report gives the same bytes.

    Args:
        report: as :func:`alum_fairseq.robustness.report.summary.build_report` makes it.
        folder: made if need be; other files in it are left alone.

    Raises:
        UsageError: the folder cannot be written to.
    """
    drawn = figures(report)
    files = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown(report, list(drawn)),
        "report.html": page(report, {name: kinds["svg"] for name, kinds in drawn.items()}),
    }
    contents = {name: text.encode("utf-8", "replace") for name, text in files.items()}
    for name, kinds in drawn.items():
        contents |= {f"{name}.{kind}": picture for kind, picture in kinds.items()}
    for name, content in contents.items():
        with whole_file(folder / name) as file:
            file.write_bytes(content)
