"""``fairseq-validate`` with a criterion that the checkpoint was not trained with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.options import command_line
from support.places import PLUGIN
from support.quick_train import mlm_options, run_forked, start


@pytest.mark.parametrize("trained", ["masked_lm", "alum_mlm"])
def test_an_attack_that_is_not_made_is_said(trained: str, few_data: Path, tmp_path: Path) -> None:
    chosen = {"criterion": trained, "max_update": 1, "tokens_per_sample": 32}
    start(mlm_options(few_data, tmp_path, **chosen), tmp_path / "log").wait()
    path = tmp_path / "checkpoint_last.pt"
    command = [str(few_data), "--path", str(path), "--task", "masked_lm", "--cpu"]
    command += ["--user-dir", str(PLUGIN), "--criterion", "alum_mlm", "--alum-validate"]
    done = run_forked("validate", [*command, "--batch-size", "8"], cwd=None, check=True)
    said = f"--criterion alum_mlm is not used: {path} was trained with masked_lm"
    assert (said in done.stdout) == (trained == "masked_lm")


def test_a_criterion_put_in_place_of_the_checkpoint_s_is_used(
    trained_model: Path, mlm_data: Path
) -> None:
    """As the demo attacks a model of stock training: by ``--model-overrides``."""
    criterion = {"_name": "alum_mlm", "tpu": False, "alum_validate": True}
    command = [str(mlm_data), "--path", str(trained_model), "--user-dir", str(PLUGIN), "--cpu"]
    command += ["--task", "masked_lm", "--batch-size", "8", "--max-valid-steps", "1"]
    command += ["--model-overrides", repr({"criterion": criterion})]
    done = run_forked("validate", command, cwd=None, check=True)
    assert "adv_ppl" in done.stdout


def validate(case: Any, data: Path, **options: Any) -> Any:
    name = "alum_sentence_ranking" if case.kind == "choices" else "alum_sentence_prediction"
    chosen = {"path": case.path, "task": name, "criterion": name, "cpu": True, "batch-size": 8}
    chosen |= {"user-dir": PLUGIN, "num-workers": 0}
    chosen |= {key.replace("_", "-"): value for key, value in options.items()}
    return run_forked("validate", [str(data), *command_line(chosen)], cwd=None, check=False)


def test_the_documented_command(case: Any) -> None:
    done = validate(case, case.data)
    assert done.returncode == 0, done.stdout
    assert ("accuracy" in done.stdout) == (case.kind != "regression")
    [error] = validate(case, case.data, criterion=None).stdout.splitlines()[-1:]
    assert "is not there): with --task alum_sentence_" in error
    assert error.endswith(f"add --criterion {error.split()[-1]}")


def test_what_has_no_labels_is_not_measured(case: Any, tmp_path: Path) -> None:
    """Ranking goes on: its criterion can save predictions."""
    data = shutil.copytree(case.data, tmp_path / "data")
    for path in data.glob("input*/valid.*"):
        shutil.copyfile(path, path.with_stem("test"))
    last = validate(case, data, valid_subset="test").stdout.splitlines()[-1]
    if case.kind == "choices":
        assert "| INFO | test |" in last
        assert "loss" not in last
    else:
        assert f"test has no labels ({data}/label/test." in last
