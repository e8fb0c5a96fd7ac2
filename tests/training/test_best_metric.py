"""``--best-checkpoint-metric``: what validation will not have, or take the wrong way round, stops
a run at its start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from support.quick_train import mlm_options

from alum_fairseq import UsageError
from alum_fairseq.tasks.best_metric import check_best_metric

F1 = {"report_acc_and_f1": True}
CORRELATION = {"report_pearson_and_spearman": True, "regression_target": True}
ATTACKED = {"validate": True}

REFUSED: list[tuple[str, bool, dict[str, Any], str]] = [
    ("f1", True, {}, "f1 is there with --report-acc-and-f1 alone"),
    ("adv_f1", True, ATTACKED, "adv_f1 is there with --report-acc-and-f1 alone"),
    ("adv_f1", True, F1, "adv_f1 is there with --alum-validate alone"),
    ("mcc", True, F1, "mcc is there with --report-mcc alone"),
    ("pearson", True, {}, "pearson is there with --report-pearson-and-spearman alone"),
    ("accuracy", True, CORRELATION, "accuracy is not there with --regression-target"),
    ("accuracy", False, {}, "is better when it is higher: add --maximize"),
    ("adv_accuracy", False, ATTACKED, "is better when it is higher: add --maximize"),
    ("f1", False, F1, "is better when it is higher: add --maximize"),
    ("loss", True, {}, "is better when it is lower: leave out --maximize"),
    ("adv_task_loss", True, ATTACKED, "is better when it is lower: leave out --maximize"),
]
TAKEN: list[tuple[str, bool, dict[str, Any]]] = [
    ("loss", False, {}),
    ("accuracy", True, {}),
    ("adv_accuracy", True, ATTACKED),
    ("f1", True, F1),
    ("adv_acc_and_f1", True, {**F1, **ATTACKED}),
    ("spearman", True, CORRELATION),
    ("adv_ppl", False, ATTACKED),
    ("of_a_criterion_that_extends_ours", True, {}),
    ("of_a_criterion_that_extends_ours", False, {}),
]


def criterion(validate: bool = False, **attributes: bool) -> SimpleNamespace:
    return SimpleNamespace(options=SimpleNamespace(alum_validate=validate), **attributes)


@pytest.mark.parametrize(("metric", "maximize", "attributes", "message"), REFUSED)
def test_refused(metric: str, maximize: bool, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_best_metric(metric, maximize, criterion(**attributes))


@pytest.mark.parametrize(("metric", "maximize", "attributes"), TAKEN)
def test_taken(metric: str, maximize: bool, attributes: dict[str, Any]) -> None:
    check_best_metric(metric, maximize, criterion(**attributes))


def build(data: Path, **chosen: Any) -> None:
    command = mlm_options(data, Path("unused"), **{"disable_validation": False, **chosen})
    args = options.parse_args_and_arch(options.get_training_parser(), command)
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)


def test_of_the_options_of_a_run(few_data: Path) -> None:
    build(few_data)
    wrong = {"best_checkpoint_metric": "ppl", "maximize_best_checkpoint_metric": True}
    with pytest.raises(UsageError, match="ppl is better when it is lower"):
        build(few_data, **wrong)
    build(few_data, **wrong, disable_validation=True)
    build(few_data, best_checkpoint_metric="adv_ppl", alum_validate=True)
    build(few_data, best_checkpoint_metric="adv_gain", alum_validate=True)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("adv_pp", "is 'adv_pp': it must be one of loss, ppl, adv_loss, .*did you mean adv_ppl?"),
        ("accuracy", "is 'accuracy': it must be one of loss, ppl, "),
        ("mcc", "mcc is there with --report-mcc alone"),
    ],
)
def test_a_metric_that_validation_will_not_have(metric: str, message: str, few_data: Path) -> None:
    with pytest.raises(UsageError, match=f"--best-checkpoint-metric {message}"):
        build(few_data, best_checkpoint_metric=metric, alum_validate=True)
