"""How good predictions are, where the right answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr

from alum_fairseq.errors import UsageError
from alum_fairseq.predict.predictor import Prediction


def scores(predictions: Sequence[Prediction], answers: Sequence[str]) -> dict[str, float]:
    """fairseq's metrics of predictions.

    Args:
        predictions: of a classifier, or of a regression.
        answers: the labels as they stand in the table.

    Returns:
        For classification ``loss`` (bits an example) and ``accuracy`` (percent); for regression
        ``loss`` (squared error an example, over ln 2, as fairseq logs it), ``pearson`` and
        ``spearman`` (percent).
    """
    if predictions[0].label is None:
        found = np.array([prediction.value for prediction in predictions])
        wanted = np.array([float(answer) for answer in answers])
        loss = np.square(found - wanted).mean() / math.log(2)
        if len(found) < 2:
            return {"loss": float(loss)}
        return {
            "loss": float(loss),
            "pearson": 100 * float(pearsonr(found, wanted)[0]),
            "spearman": 100 * float(spearmanr(found, wanted)[0]),
        }
    pairs = list(zip(predictions, answers, strict=True))
    tiny = np.finfo(np.float32).tiny  # a probability that came out as zero
    bits = [-math.log2(max(prediction.probabilities[answer], tiny)) for prediction, answer in pairs]
    right = [prediction.label == answer for prediction, answer in pairs]
    return {"loss": float(np.mean(bits)), "accuracy": 100 * float(np.mean(right))}


def check_answer(answer: str, labels: Sequence[str] | None, place: str) -> None:
    """Make sure that an answer is one that the model could give.

    Raises:
        UsageError: it is no number, or no class of the model; the message begins with the place.
    """
    if labels is None:
        try:
            finite = math.isfinite(float(answer))
        except ValueError:
            finite = False
        if not finite:
            raise UsageError(f"{place}: the label {answer!r} is no number")
    elif answer not in labels:
        raise UsageError(f"{place}: the model has no label {answer!r}: it has {', '.join(labels)}")
