"""What logits mean: one file for each type of problem, torch alone."""

from alum_fairseq.problems.classification import Classification
from alum_fairseq.problems.masked_lm import MaskedLM
from alum_fairseq.problems.multiple_choice import MultipleChoice
from alum_fairseq.problems.problem import (
    PROBLEMS,
    UNLABELLED,
    Prediction,
    Problem,
    SupervisedProblem,
    Verdict,
    register_problem,
)
from alum_fairseq.problems.regression import Regression

__all__ = [
    "PROBLEMS",
    "UNLABELLED",
    "Classification",
    "MaskedLM",
    "MultipleChoice",
    "Prediction",
    "Problem",
    "Regression",
    "SupervisedProblem",
    "Verdict",
    "register_problem",
]
