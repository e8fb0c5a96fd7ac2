"""A new attack or measurement is one file: one from outside the package runs, and is reported."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_robustness import FEW, robustness, solve
from test_robustness import chunks as chunks  # a fixture

from alum_fairseq import UsageError
from alum_fairseq.predict import Predictor
from alum_fairseq.robustness.examples import sample
from alum_fairseq.robustness.parts import PARTS, register_part

KEEP = [0.3, 0.6]


@pytest.fixture
def own_parts() -> Iterator[Any]:
    """The parts of tests/support/own_parts.py, registered for the time of a test."""
    before = dict(PARTS)
    sys.modules.pop("support.own_parts", None)
    yield importlib.import_module("support.own_parts")
    PARTS.clear()
    PARTS.update(before)


@pytest.fixture
def case(cases: dict[str, Any], tmp_path: Path) -> Any:
    return solve(cases["single"], tmp_path)


@pytest.fixture
def options(case: Any, tmp_path: Path) -> dict[str, Any]:
    chosen = {"path": case.path, "input": case.table, "output": tmp_path / "report", "keep": KEEP}
    return {**FEW, **chosen, "max_edits": 1, "parts": ["doubling", "beginning"]}


def test_own_parts_are_run_and_reported(own_parts: Any, options: dict[str, Any], case: Any) -> None:
    done = robustness(**options)
    assert done.status == 0, done.err
    folder = options["output"]
    report = json.loads((folder / "report.json").read_text())
    name = report["models"][0]["name"]
    assert report["settings"]["parts"] == ["clean", "doubling", "beginning"]
    assert report["settings"]["keep"] == KEEP
    measures = {one["key"]: one for one in report["measures"]}
    own = [key for key in measures if not key.startswith("clean.")]
    attack = [f"doubling.{key}" for key in ("accuracy", "success", "changed", "queries")]
    together = ["attacks.mean", "attacks.worst"]
    assert own == [*together, *attack, "beginning.0.3", "beginning.0.6"]

    # The numbers are those of a prediction.
    predictor = Predictor.load(case.path)
    heads = {json.loads(path.read_text().split("\n")[0])["part"]: path for path in works(folder)}
    assert set(heads) == {"clean", "doubling", "beginning"}
    rows = sorted(case.rows, key=lambda row: -len(row["a"]))
    for share in KEEP:
        found = predictor.predict([(own_parts.first(row["a"], share),) for row in rows])
        right = {
            row["a"]: prediction.label == row["label"]
            for row, prediction in zip(rows, found, strict=True)
        }
        attacked = examples_of(options, case)
        expected = 100 * sum(right[text] for text in attacked) / len(attacked)
        value = measures[f"beginning.{share:g}"]["values"][name]["value"]
        assert value == pytest.approx(expected, rel=1e-5)
        assert report["curves"]["beginning"]["models"][name]["y"][KEEP.index(share)] == value

    # What an attack of one method breaks is shown, and is what it says.
    broken = [one for one in report["examples"] if one["attack"] == "doubling"]
    assert broken
    for one in broken:
        [before], [after] = one["original"]["texts"], one["attacked"]["texts"]
        assert len(after.replace(" ", "")) == len(before.replace(" ", "")) + one["edits"]
        [prediction] = predictor.predict([(after,)])
        assert prediction.label == one["attacked"]["prediction"] != one["answer"]

    assert any("beginnings may be beside the point" in one for one in report["warnings"])
    assert "doubled letters (8), beginning (8)" in report["warnings"][0]
    assert (folder / "beginning.png").read_bytes().startswith(b"\x89PNG")
    headings = ("Attack on the words, doubled letters", "Only the beginning")
    for text in (done.out, *((folder / f"report.{end}").read_text() for end in ("md", "html"))):
        assert all(heading in text for heading in headings)
    page = (folder / "report.html").read_text()
    assert "Doubled letters, " in page  # of the worst examples
    for said in ("words kept (%)", "Right answers (up) by the words that are kept."):
        assert said in page


def works(folder: Path) -> list[Path]:
    return list((folder / "work").iterdir())


def examples_of(options: dict[str, Any], case: Any) -> list[str]:
    """The texts that attacks look at, as the command draws them."""
    chosen = sample(case.rows, options["examples"], 1)
    return [row["a"] for row in sample(chosen, options["attack_examples"], 1)]


def test_own_parts_go_on_where_they_were(
    own_parts: Any, options: dict[str, Any], chunks: list[str]
) -> None:
    assert robustness(**options).status == 0
    assert chunks == ["clean"] * 6 + ["doubling"] * 2 + ["beginning"] * 2
    chunks.clear()
    assert robustness(**options).status == 0
    assert chunks == []
    assert robustness(**{**options, "keep": [0.4]}).status == 0
    assert chunks == ["beginning"] * 2


def test_a_name_is_taken_once() -> None:
    for name in ("noise", "", "two words", "a:b"):
        with pytest.raises(UsageError, match=f"a part cannot be called '{name}'"):
            register_part(name)
