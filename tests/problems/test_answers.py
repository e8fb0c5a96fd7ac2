"""What the commands ask of a problem, each against another way to find it."""

from __future__ import annotations

import itertools
import math
from statistics import pstdev

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, log_loss
from torch.nn.functional import cross_entropy, mse_loss

from alum_fairseq.errors import UsageError
from alum_fairseq.problems import (
    Classification,
    MultipleChoice,
    Regression,
    SupervisedProblem,
)

LABELS = ("no", "well, maybe", "yes")
CLASSES = Classification(LABELS)
CHOICES = MultipleChoice(("A", "B", "C"))
NUMBERS = Regression(scale=5.0, tolerance=0.7)
EVERY = pytest.mark.parametrize("problem", [CLASSES, CHOICES, NUMBERS], ids=lambda p: p.name)
CATEGORICAL = pytest.mark.parametrize("problem", [CLASSES, CHOICES], ids=lambda p: p.name)


def logits_of(problem: SupervisedProblem, examples: int = 12) -> torch.Tensor:
    return torch.randn(examples, len(problem.labels) or 1, dtype=torch.float64)


def answers_of(problem: SupervisedProblem, examples: int = 12) -> list[str]:
    numbers = [str(round(4 * math.sin(i), 2)) for i in range(examples)]
    return [problem.labels[i % 3] if problem.labels else numbers[i] for i in range(examples)]


# ------------------------------------------------------------------------------ tables and labels


@EVERY
def test_made_of_what_a_record_says(problem: SupervisedProblem) -> None:
    made = type(problem)(problem.labels, problem.scale)
    assert (made.labels, made.scale) == (problem.labels, problem.scale)


def test_the_options_of_fairseq() -> None:
    assert CLASSES.train_options() == CHOICES.train_options() == ["--num-classes", "3"]
    assert NUMBERS.train_options() == ["--num-classes", "1", "--regression-target"]


@CATEGORICAL
def test_an_answer_is_the_number_of_a_class(problem: SupervisedProblem) -> None:
    assert [problem.answer(label) for label in problem.labels] == [0, 1, 2]
    with pytest.raises(UsageError, match=r"^x:1: the label 'so' is none of the classes \("):
        problem.check_answer("so", "x:1")


def test_an_answer_is_a_number() -> None:
    assert [NUMBERS.answer(text) for text in ("2", "-1e1", " 3 ")] == [2, -10, 3]
    for text in ("two", "nan", "inf", ""):
        with pytest.raises(UsageError, match=f"^x:1: the label {text!r} is no number$"):
            NUMBERS.check_answer(text, "x:1")


@EVERY
def test_labels_come_back_from_fairseqs_files(problem: SupervisedProblem) -> None:
    for answer in answers_of(problem):
        back = problem.from_label_line(problem.label_line(answer))
        assert problem.answer(back) == pytest.approx(problem.answer(answer))
    for line in ("", "x", *(["3", "-1"] if problem.categorical else [])):
        with pytest.raises(ValueError):  # noqa: PT011
            problem.from_label_line(line)


def test_what_fairseq_reads_is_divided_by_the_scale() -> None:
    assert NUMBERS.label_line("4") == "0.8"
    assert CLASSES.label_line("yes") == "2"


def test_texts_that_the_model_reads_together() -> None:
    assert CLASSES.inputs(["a", "b"]) == NUMBERS.inputs(["a", "b"]) == [("a", "b")]
    assert CHOICES.inputs(["context", "1", "2"]) == [("1", "context"), ("2", "context")]
    for problem in (CLASSES, NUMBERS):
        problem.check_texts(1)
        problem.check_texts(2)
        problem.check_columns(2, "x")
        with pytest.raises(UsageError, match="an example has 1 or 2 texts, not 3"):
            problem.check_texts(3)
    CHOICES.check_texts(4)
    CHOICES.check_columns(4, "x")
    with pytest.raises(UsageError, match="chooses among 3 candidates: an example has 4 texts"):
        CHOICES.check_texts(3)
    with pytest.raises(
        UsageError, match=r"x: the labels are A, B, C, but they must .* 2 choices .* 0 1$"
    ):
        CHOICES.check_columns(3, "x")


# -------------------------------------------------------------------------- predictions and scores


@CATEGORICAL
def test_predictions_and_scores_of_classes(problem: SupervisedProblem) -> None:
    logits, answers = logits_of(problem), answers_of(problem)
    found = [problem.prediction(row) for row in logits]
    right = [problem.labels.index(answer) for answer in answers]
    probabilities = [[p.probabilities[label] for label in problem.labels] for p in found]
    torch.testing.assert_close(torch.tensor(probabilities).double(), logits.softmax(1))
    best = [problem.labels.index(p.label) for p in found]
    assert best == logits.argmax(1).tolist()
    assert problem.scores(found, answers) == pytest.approx(
        {
            "loss": log_loss(right, probabilities, labels=[0, 1, 2]) / math.log(2),
            "accuracy": 100 * accuracy_score(right, best),
        }
    )


def test_a_probability_of_zero_costs_what_float32_can_tell() -> None:
    found = CLASSES.prediction(torch.tensor([0.0, 500.0, 0.0]))
    assert CLASSES.scores([found], ["no"])["loss"] == pytest.approx(126)


def test_predictions_and_scores_of_numbers() -> None:
    logits, answers = logits_of(NUMBERS), answers_of(NUMBERS)
    logits[3] = logits[5]  # equal ones share a rank
    found = [NUMBERS.prediction(row) for row in logits]
    values, wanted = [p.value for p in found], [float(answer) for answer in answers]
    assert values == pytest.approx((5 * logits[:, 0]).tolist())
    assert NUMBERS.scores(found, answers) == pytest.approx(
        {
            "loss": float(mse_loss(torch.tensor(values), torch.tensor(wanted))) / math.log(2),
            "pearson": 100 * pearsonr(values, wanted)[0],
            "spearman": 100 * spearmanr(values, wanted)[0],
        }
    )
    assert list(NUMBERS.scores(found[:1], answers[:1])) == ["loss"]


def test_how_a_prediction_is_written() -> None:
    one = CLASSES.prediction(torch.tensor([0.0, 0.0, math.log(2)]))
    row = {"label": "yes", "p(no)": "0.250000", "p(well, maybe)": "0.250000", "p(yes)": "0.500000"}
    assert list(CLASSES.row(one).items()) == list(row.items())
    entries = {"label": "yes", "probabilities": {"no": 0.25, "well, maybe": 0.25, "yes": 0.5}}
    assert CLASSES.entries(one) == entries
    number = NUMBERS.prediction(torch.tensor([0.5]))
    assert (NUMBERS.row(number), NUMBERS.entries(number)) == ({"value": "2.5"}, {"value": 2.5})


# --------------------------------------------------------------------------------- right and wrong


@CATEGORICAL
def test_the_loss_of_classes(problem: SupervisedProblem) -> None:
    logits, answers = logits_of(problem), answers_of(problem)
    targets = problem.targets([(answer,) for answer in answers])
    right = torch.tensor([problem.labels.index(answer) for answer in answers])
    loss = problem.loss(logits, targets)
    torch.testing.assert_close(loss, cross_entropy(logits, right, reduction="none"))
    # The odds against the answer, of its likelihood.
    likelihood = (-loss).exp()
    against = ((1 - likelihood) / likelihood).log()
    torch.testing.assert_close(problem.attack_loss(logits, targets), against)

    several = problem.targets([problem.labels[1:]] * len(logits))
    together = -logits.softmax(1)[:, 1:].sum(1).log()
    torch.testing.assert_close(problem.loss(logits, several), together)


def test_an_attack_on_a_sure_model_has_a_gradient() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    targets = CLASSES.targets([("no",)])
    for loss, steep in ((CLASSES.loss, False), (CLASSES.attack_loss, True)):
        [gradient] = torch.autograd.grad(loss(logits, targets).sum(), logits)
        assert bool(gradient.norm() > 1) == steep


def test_the_loss_of_numbers() -> None:
    logits, answers = logits_of(NUMBERS), answers_of(NUMBERS)
    targets = NUMBERS.targets([(answer,) for answer in answers])
    numbers = torch.tensor([float(answer) for answer in answers], dtype=torch.float64)
    wanted = mse_loss(5 * logits[:, 0], numbers, reduction="none")
    torch.testing.assert_close(NUMBERS.loss(logits, targets), wanted)
    torch.testing.assert_close(NUMBERS.attack_loss(logits, targets), wanted)


@CATEGORICAL
def test_margins_and_verdicts_of_classes(problem: SupervisedProblem) -> None:
    """By trying every class in the place of every right one."""
    logits = logits_of(problem)
    subsets = [s for n in (1, 2, 3) for s in itertools.combinations(problem.labels, n)]
    accepted = [subsets[i % len(subsets)] for i in range(len(logits))]
    targets = problem.targets(accepted)
    margins = problem.margins(logits, targets)
    for row, right, target, margin in zip(logits, accepted, targets, margins, strict=True):
        scores = dict(zip(problem.labels, row.tolist(), strict=True))
        for label, found in zip(problem.labels, margin.tolist(), strict=True):
            best = max(scores[each] for each in right)
            assert found == (math.inf if label in right else best - scores[label])
        verdict = problem.verdict(row.float(), target)
        said = max(scores, key=scores.__getitem__)
        assert (verdict.prediction, verdict.correct) == (said, said in right)
        assert verdict.correct == bool(margin.amin() > 0)
        probabilities = row.softmax(0)
        share = sum(float(probabilities[problem.labels.index(each)]) for each in right)
        assert verdict.loss == pytest.approx(-math.log(share), abs=1e-6)
        assert verdict.confidence == pytest.approx(float(probabilities.max()), abs=1e-6)


def test_margins_and_verdicts_of_numbers() -> None:
    logits, answers = logits_of(NUMBERS, 40), answers_of(NUMBERS, 40)
    targets = NUMBERS.targets([(answer,) for answer in answers])
    margins = NUMBERS.margins(logits, targets)
    verdicts = [NUMBERS.verdict(*pair) for pair in zip(logits, targets, strict=True)]
    for row, answer, verdict, margin in zip(logits, answers, verdicts, margins, strict=True):
        value = 5 * float(row[0])
        high, low = float(answer) + 0.7 - value, value - (float(answer) - 0.7)
        assert margin.tolist() == pytest.approx([high, low])
        assert verdict.prediction == pytest.approx(value)
        assert verdict.correct == (abs(value - float(answer)) <= 0.7) == bool(margin.amin() >= 0)
        assert verdict.loss == pytest.approx((value - float(answer)) ** 2)
        assert verdict.confidence is None
    assert {verdict.correct for verdict in verdicts} == {True, False}


def test_the_tolerance() -> None:
    answers = answers_of(NUMBERS)
    assert NUMBERS.within(0.2, answers).tolerance == 0.2
    half = pstdev(map(float, answers)) / 2
    assert NUMBERS.within(None, answers).tolerance == pytest.approx(half)
    assert NUMBERS.within(None, answers).scale == NUMBERS.scale
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError, match=f"--tolerance is {wrong:g}: it must be above 0"):
            NUMBERS.within(wrong, answers)
    with pytest.raises(UsageError, match="all answers are equal: give --tolerance"):
        NUMBERS.within(None, ["1", "1"])
    assert CLASSES.within(None, []) is CLASSES
    with pytest.raises(UsageError, match="--tolerance is for regression, but the model has cl"):
        CLASSES.within(0.1, [])
