"""What the README and the manual say is so: numbers, options, presets, Python, files."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from support.places import ROOT

import alum_fairseq
from alum_fairseq import PRESETS
from alum_fairseq.criterions.options import GONE, AlumConfig

sys.path.insert(0, str(ROOT / "examples/evidence"))
import overview
from summary import measure

README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
PAGES = {"README.md": README, **MANUAL}


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_its_table_is_of_the_results() -> None:
    found = overview.results()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines()]
    tasks = {"SST-2": "sst2", "SICK entailment": "sick-e"}
    methods = {"plain": "plain", "ALUM": "calibrated"}
    columns = ("clean.accuracy", "greedy.accuracy", "linf.area", "clean.ece")
    task, seen = "", 0
    for row in [row for row in rows if len(row) == 7 and row[1] in methods]:
        task = tasks[row[0]] if row[0] else task
        for key, shown in zip(columns, row[2:], strict=False):
            values = list(found.values(methods[row[1]], task, measure(key)).values())
            assert len(values) == 5
            # Of two numbers equally near, either.
            assert float(shown) == pytest.approx(sum(values) / 5, abs=0.0501), (row, key)
            seen += 1
    assert seen == 16


def test_its_picture_is_drawn(tmp_path: Path) -> None:
    overview.main([str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_its_python_runs() -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["model"].parameters())
    assert names["delta"].abs().sum() > 0
    assert names["loss"] > torch.nn.functional.cross_entropy(
        names["logits"], names["labels"], reduction="sum"
    )


def test_every_preset_is_explained() -> None:
    named = set(re.findall(r"`([a-z0-9+]+)`", MANUAL["methods.md"]))
    assert PRESETS.keys() <= named


@pytest.mark.parametrize("name", PAGES)
def test_options_that_are_named_are_there(name: str) -> None:
    ours = {"--" + f.name.replace("_", "-") for f in fields(AlumConfig)} - {"---name"}
    ours -= {"--" + name.replace("_", "-") for name in GONE}
    text = PAGES[name].partition("<!-- Made by")[0]
    named = set(re.findall(r"--alum-[a-z]+(?:-[a-z]+)*", text))
    assert named <= ours | {"--alum-layer-norm-eps"}


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_are_there(name: str) -> None:
    paths = r"\b((?:examples|scripts|tests|docker|alum_fairseq|docs)/(?![\w/.]*NAME)[\w/.]*\.\w+)\b"
    for path in re.findall(paths, PAGES[name].replace("examples/roberta/", "")):  # fairseq's
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", PAGES)
def test_yaml_and_python_can_be_read(name: str) -> None:
    text = PAGES[name].partition("<!-- Made by")[0]
    for language, block in re.findall(r"```(yaml|python)\n(.*?)```", text, flags=re.DOTALL):
        if language == "yaml":
            yaml.safe_load(block)
        else:
            compile(block, name, "exec")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == alum_fairseq.__version__
    for entry in (citation["references"][0], citation["preferred-citation"]):
        assert entry["title"] in README
        assert entry["authors"][0]["family-names"] == "Liu"


def test_versions_in_the_manual_are_those_that_are_installed() -> None:
    setup = (ROOT / "scripts/setup.sh").read_text(encoding="utf-8")
    for pinned in re.findall(r"'([\w-]+[=<>][^']*)'", MANUAL["install.md"]):
        assert pinned.partition(" --index-url")[0] in setup, pinned
