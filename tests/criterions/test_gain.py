"""On a trained model: a gain for `calibrated`, none for what was published."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.places import ROOT
from support.tools import run_tool

from alum_fairseq import cli

sys.path.append(str(ROOT / "examples" / "presets"))
import compare

Results = dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def results(
    trained_model: Path, mlm_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Results:
    report = tmp_path_factory.mktemp("compare") / "report.json"
    script = ROOT / "examples" / "presets" / "compare.py"
    run_tool("python", script, trained_model, mlm_data, "--examples", "32", "--json", report)
    [found] = json.loads(report.read_text())["results"].values()
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_calibrated_finds_an_adversarial_direction(results: Results, precision: str) -> None:
    found = results["calibrated"][precision]
    assert found["gain"] > 50
    assert found["kl"] > 5e-3


@pytest.mark.parametrize("ball", ["calibrated", "l2 sentence, 0.1"])
def test_of_balls_of_one_size_that_of_a_sentence_in_l2_finds_most(
    results: Results, ball: str
) -> None:
    """Size: the root mean square of the perturbation's coordinates."""
    most = results[ball]["fp32"]
    for name, result in results.items():
        plain = not any(word in name for word in ("K =", "dropout", "noise", "step "))
        if plain and result["fp32"]["size"] < 1.05 * most["size"]:
            assert result["fp32"]["kl"] < 1.05 * most["kl"], name


def test_the_reference_rule_finds_none(results: Results) -> None:
    found = results["reference"]["fp32"]
    assert 0.3 < found["gain"] < 3
    # Its size is about a third of an embedding's, whatever its epsilon.
    assert 0.1 < found["size"] < 1


def test_the_papers_numbers_change_nothing(results: Results) -> None:
    found = results["paper"]["fp32"]
    assert abs(found["kl"]) < 1e-6
    assert found["size"] < 1e-4


def test_a_random_direction_is_none(results: Results) -> None:
    assert 0.3 < results["random"]["fp32"]["gain"] < 3


def test_more_steps_find_more(results: Results) -> None:
    one, two, three = (results[name]["fp32"]["kl"] for name in ("calibrated", "K = 2", "K = 3"))
    assert one < two
    assert one < three


def test_short_steps_drown_in_the_start(results: Results) -> None:
    assert results["step 0.01"]["fp32"]["kl"] < 0.7 * results["calibrated"]["fp32"]["kl"]


def test_shared_dropout_leaves_the_gain_and_independent_hides_it(results: Results) -> None:
    shared, independent = (
        results[f"dropout on, {how}"]["fp32"]["gain"] for how in ("shared", "independent")
    )
    assert shared > 20
    assert independent < shared / 2


@pytest.mark.parametrize("head", ["sentence_classification_head", "which_package"])
def test_a_classifier_is_taken_whatever_its_head_is_called(
    head: str, cases: dict[str, Any], tmp_path: Path
) -> None:
    case = cases["single"]
    state = torch.load(case.path, weights_only=False)
    state["model"] = {
        name.replace("sentence_classification_head", head): weight
        for name, weight in state["model"].items()
    }
    state["cfg"]["task"]["classification_head_name"] = head
    torch.save(state, tmp_path / "model.pt")
    subject = compare.Subject.load(tmp_path / "model.pt", case.data, 4)
    assert len(subject.model(**subject.inputs)[0]) == 4
    assert compare.measure(subject, compare.SETTINGS["calibrated"], seed=1)["kl"] > 0


@pytest.mark.parametrize("kind", ["regression", "choices"])
def test_a_head_with_one_output_is_refused(
    kind: str, cases: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases[kind]
    assert compare.main([str(case.path), str(case.data)]) == cli.WRONG_USAGE
    *_, said = capsys.readouterr().err.splitlines()
    assert f"{case.path} has a head with one output" in said
