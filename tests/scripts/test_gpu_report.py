"""The GPU's page: every step of it on a CPU, and what it says of a step that fails."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import gpu_report


@pytest.mark.slow  # four short trainings
def test_all_steps_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "gpu_report.py", "--quick", "--output", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    [numbers], [page] = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    report = json.loads(numbers.read_text())
    assert report["failures"] == {}
    assert report["tests"]["skipped"] == report["tests"]["tests"] > 50
    for step, batch in (("cost", "8 x 32"), ("large", "16 x 32")):
        costs = report[step][batch]["results"]["masked_lm"]["bf16"]
        assert costs["exact"]["flops_ratio"] > 2
    training = report["training"]["training"]
    assert training["data"]["classes"] > 2
    for name in ("pre-training", "fine-tuning"):
        assert training[f"{name}, ALUM"]["updates"] == gpu_report.QUICK.updates
    text = page.read_text()
    for shown in ("### bf16, 8 x 32 tokens", "| freelb |", "fine-tuning, ALUM", "| Accuracy |"):
        assert shown in text


def test_a_step_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> Any:
        raise gpu_report.StepError("no memory is left")

    tests = {"tests": 3, "failures": 1, "errors": 0, "skipped": 0, "seconds": 2.0}
    tests["failed"] = [{"test": "test_one", "message": "1 is not 2\nat all"}]
    measures = {"Accuracy": {"stock": 51.0, "ALUM": None, "unit": "%"}}
    row = {"precision": "bf16", "updates": 9, "seconds_an_update": 0.1, "valid_loss": 2.0}
    names = ("stock", "ALUM")
    figures = {f"fine-tuning, {name}": {**row, "valid_accuracy": 9.0} for name in names}
    training = {"training": {"data": {"classes": 8, "train": 90, "valid": 10}, **figures}}
    monkeypatch.setattr(gpu_report, "QUICK", dataclasses.replace(gpu_report.QUICK, times_chance=2))
    training["robustness"] = measures
    monkeypatch.setattr(gpu_report, "run_benchmarks", fails)
    monkeypatch.setattr(gpu_report, "run_training", lambda *_: training)
    monkeypatch.setattr(gpu_report, "run_tests", lambda *_: tests)
    assert gpu_report.main(["--quick", "--output", str(tmp_path)]) == 1
    [numbers], [page] = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    failures = json.loads(numbers.read_text())["failures"]
    assert failures["cost"] == failures["large"] == "no memory is left"
    assert failures["tests"] == "1 tests failed"
    assert failures["training"].startswith("fine-tuning, stock: 9.0% of the answers are right")
    text = page.read_text()
    assert "**cost failed**" in text
    assert "| Accuracy | 51.0% | - |" in text
    assert "- `test_one`: 1 is not 2\n" in text
    assert "step 3 of 4: tests ... failed" in capsys.readouterr().out

    monkeypatch.setattr(gpu_report, "run_tests", lambda *_: {**tests, "failures": 0, "failed": []})
    monkeypatch.setattr(gpu_report, "run_training", fails)
    gpu_report.main(["--quick", "--output", str(tmp_path), "--steps", "tests"])
    assert set(json.loads(numbers.read_text())["failures"]) == {"cost", "training", "large"}
    text = page.read_text()
    assert "3 passed, 0 failed" in text
    assert "| Accuracy | 51.0% | - |" in text


def test_a_command_that_fails_says_how(tmp_path: Path) -> None:
    run = gpu_report.Runner(tmp_path)
    with pytest.raises(gpu_report.StepError, match="one ended with status 3:\nwhat it said"):
        run("one", sys.executable, "-c", "print('what it said'); raise SystemExit(3)")


def test_a_model_that_learnt_nothing_fails() -> None:
    report = {"data": {"classes": 8}, "fine-tuning, stock": {"valid_accuracy": 60.0}}
    report["fine-tuning, ALUM"] = {"valid_accuracy": 24.0}
    with pytest.raises(gpu_report.StepError, match=r"ALUM: 24.0% .* by chance 12.5"):
        gpu_report.check_learnt(report, 2.0)
    gpu_report.check_learnt(report, 1.5)
