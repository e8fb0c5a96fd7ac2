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
from alum_fairseq.problems.sequence_tagging import SequenceTagging
from alum_fairseq.problems.span_prediction import SpanPrediction
from alum_fairseq.problems.token_problem import Outputs, Piece, PieceOf, Right, Share, TokenProblem

__all__ = [
    "PROBLEMS",
    "UNLABELLED",
    "Classification",
    "MaskedLM",
    "MultipleChoice",
    "Outputs",
    "Piece",
    "PieceOf",
    "Prediction",
    "Problem",
    "Regression",
    "Right",
    "SequenceTagging",
    "Share",
    "SpanPrediction",
    "SupervisedProblem",
    "TokenProblem",
    "Verdict",
    "register_problem",
]
