"""The cells of the tutorial's notebook run, in their order."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.places import ROOT

CELLS = [
    "".join(cell["source"])
    for cell in json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that makes it: half of each class, and no sentence twice."""
    monkeypatch.chdir(tmp_path)
    exec(CELLS[0], {})
    rows = [
        tuple(line.split("\t"))
        for name, lines in {"train": 800, "dev": 200, "test": 200}.items()
        for line in (tmp_path / f"{name}.tsv").read_text().splitlines()[1 : lines + 2]
    ]
    assert len(rows) == 1200
    assert [label for _, label in rows].count("plots") == 600
    assert len(set(rows)) == 1200


@pytest.mark.slow  # trains a real encoder twice
def test_all_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = ""
    for cell in CELLS:
        magic, _, script = cell.partition("\n")
        if magic == "%%bash":
            done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            output += done.stdout
        else:
            exec(cell, {})
    assert "statistics" in output
    assert (tmp_path / "report/report.html").is_file()
    assert (tmp_path / "finetuned-hf/model.safetensors").is_file()
