"""``--best-checkpoint-metric`` must be there in validation, and have its better direction."""

from __future__ import annotations

from typing import Any

from alum_fairseq.errors import FieldError, UsageError, require_choice
from alum_fairseq.problems import SequenceTagging, TokenProblem

# Of classification and regression: what has to be asked for, and the attribute that says it was.
_REPORTED = {
    **dict.fromkeys(("acc_and_f1", "f1"), "report_acc_and_f1"),
    **dict.fromkeys(("pearson_and_spearman", "pearson", "spearman"), "report_pearson_and_spearman"),
    "mcc": "report_mcc",
}
_HIGHER_IS_BETTER = {"accuracy", "em", "precision", "recall", *_REPORTED}
_LOWER_IS_BETTER = {"loss", "nll_loss", "ppl", "task_loss"}

# What our criteria log in validation, by the problem.
_LOGGED = {
    "masked_lm": ("loss", "ppl"),
    "classification": ("loss", "nll_loss", "accuracy", *_REPORTED),
    "regression": ("loss", "nll_loss", *_REPORTED),
    "multiple_choice": ("loss", "nll_loss", "accuracy"),
    "span_prediction": ("loss", "em", "f1"),
    "sequence_tagging": ("loss", "accuracy", "f1", "precision", "recall"),
}
_LOGGED_BY_ALUM = ("adv_loss", "adv_task_loss", "adv_norm", "adv_gain", "adv_skipped")


def check_best_metric(metric: str, maximize: bool, criterion: Any) -> None:
    """Make sure that the best checkpoint can be told, before an epoch is spent.

    Raises:
        UsageError: validation will not have the metric, or its worst value would count as its best.
    """
    clean = metric.removeprefix("adv_")
    if clean != metric and not criterion.options.alum_validate:
        raise UsageError(
            f"--best-checkpoint-metric {metric} is there with --alum-validate alone: add it"
        )
    problem = getattr(criterion, "problem", None)
    reported = None if isinstance(problem, TokenProblem) else _REPORTED.get(clean)
    if reported is not None and not getattr(criterion, reported, False):
        raise UsageError(
            f"--best-checkpoint-metric {metric} is there with --{reported.replace('_', '-')} "
            "alone: add it"
        )
    if clean == "accuracy" and getattr(criterion, "regression_target", False):
        raise UsageError(
            f"--best-checkpoint-metric {metric} is not there with --regression-target: take loss, "
            "or add --report-pearson-and-spearman and take pearson_and_spearman"
        )
    if type(criterion).__module__.startswith("alum_fairseq."):  # others may log more
        logged = _LOGGED[problem.name]
        if isinstance(problem, SequenceTagging) and not problem.has_entities:
            logged = ("loss", "accuracy")
        try:
            names = (*logged, *(f"adv_{name}" for name in logged), *_LOGGED_BY_ALUM)
            require_choice("best_checkpoint_metric", metric, dict.fromkeys(names))
        except FieldError as error:
            raise UsageError(f"--best-checkpoint-metric {error.problem}") from None
    wrong = clean in (_LOWER_IS_BETTER if maximize else _HIGHER_IS_BETTER)
    if wrong:
        remedy = "lower: leave out" if maximize else "higher: add"
        raise UsageError(
            f"--best-checkpoint-metric {metric} is better when it is {remedy} "
            "--maximize-best-checkpoint-metric"
        )
