"""On a trained model: a gain for `calibrated`, none for what was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, run_tool


@pytest.fixture(scope="module")
def results(
    trained_model: Path, mlm_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, float]]:
    report = tmp_path_factory.mktemp("compare") / "report.json"
    script = ROOT / "examples" / "presets" / "compare.py"
    run_tool("python", script, trained_model, mlm_data, "--json", report)
    return json.loads(report.read_text())["results"]


def test_calibrated_finds_an_adversarial_direction(results: dict[str, dict[str, float]]) -> None:
    assert results["calibrated"]["gain"] > 20
    assert results["calibrated"]["kl"] > 1e-3
    for name in ("steps 2", "steps 3", "l2 token", "l2 sentence", "absolute linf 0.1"):
        assert results[name]["gain"] > 20, name


def test_the_reference_rule_finds_none(results: dict[str, dict[str, float]]) -> None:
    assert 0.3 < results["reference"]["gain"] < 3
    # Its size is about 1, whatever its epsilon.
    assert results["reference"]["size"] == pytest.approx(1, abs=0.1)


def test_the_papers_numbers_change_nothing(results: dict[str, dict[str, float]]) -> None:
    assert abs(results["paper"]["kl"]) < 1e-6
    assert results["paper"]["size"] <= 1e-5 * (1 + 1e-6)


def test_more_steps_find_more(results: dict[str, dict[str, float]]) -> None:
    one, two, three = (results[n]["kl"] for n in ("calibrated", "steps 2", "steps 3"))
    assert one < two
    assert one < three


def test_shared_dropout_leaves_the_gain_and_independent_hides_it(
    results: dict[str, dict[str, float]],
) -> None:
    shared = results["calibrated, dropout on, shared"]["gain"]
    independent = results["calibrated, dropout on, independent"]["gain"]
    assert shared > 20
    assert independent < shared / 2
