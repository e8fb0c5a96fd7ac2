"""How good a model is, how sure that number is, and whether another model differs from it.

A *statistic* is a function of arrays whose last axis runs over examples, one column each; it
returns an array without that axis (or one of several values in front of what is left). So it works
on one sample and on a thousand resampled ones at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.stats import false_discovery_control, rankdata, ttest_ind

Array = np.ndarray
Statistic = Callable[..., Array]

# What a statistic needs to know of one checkpoint: columns of equal length.
Columns = Sequence[Array]

BINS = 15  # of the expected calibration error, as in Guo et al. (2017)

# How many numbers of a column are resampled at once: a few tens of MB.
_AT_ONCE = 4_000_000


def mean(column: Array) -> Array:
    """The mean; of what is true or false, the share of what is true."""
    return column.mean(-1)


def means(*columns: Array) -> Array:
    """The means of several columns; columns come first."""
    return np.stack([mean(column) for column in columns])


def median_above_zero(column: Array) -> Array:
    """The median of the values above zero, infinite where half of them are; NaN where none is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return np.nanmedian(np.where(column > 0, column, np.nan), axis=-1)


def ratio(numerator: Array, denominator: Array) -> Array:
    """The ratio of the sums of two columns; NaN where the second is zero throughout."""
    below = denominator.sum(-1)
    return numerator.sum(-1) / np.where(below == 0, np.nan, below)


def share_above(thresholds: Sequence[float]) -> Statistic:
    """The share of the values above each threshold, for a column; thresholds come first."""
    return lambda column: np.stack([mean(column > threshold) for threshold in thresholds])


def area_up_to(ceiling: float) -> Statistic:
    """The mean of the share of values above t, over t from 0 to ``ceiling``.

    Which is the mean of the values cut at the ceiling, over the ceiling.
    """
    return lambda column: mean(np.minimum(column / ceiling, 1))


def matthews(classes: int) -> Statistic:
    """Matthews' correlation of predictions and answers, numbers from 0 to below ``classes``.

    For several classes that of Gorodkin (2004). 0 where predictions or answers are all alike.
    """

    def statistic(prediction: Array, answer: Array) -> Array:
        table = _confusion(prediction, answer, classes)
        answered, predicted = table.sum(-1), table.sum(-2)
        right = np.trace(table, axis1=-2, axis2=-1)
        total = answered.sum(-1)
        covariance = right * total - (answered * predicted).sum(-1)
        variances = [total**2 - np.square(counts).sum(-1) for counts in (answered, predicted)]
        return covariance / np.maximum(np.sqrt(variances[0]) * np.sqrt(variances[1]), 1)

    return statistic


def f1(classes: int) -> Statistic:
    """F1 of predictions and answers, numbers from 0 to below ``classes``.

    Of two classes that of the second, as in fairseq; of more the mean over classes. A class that
    is neither predicted nor an answer counts as 0.
    """

    def statistic(prediction: Array, answer: Array) -> Array:
        table = _confusion(prediction, answer, classes)
        right = np.diagonal(table, axis1=-2, axis2=-1)
        scores = 2 * right / np.maximum(table.sum(-1) + table.sum(-2), 1)
        return scores[..., 1] if classes == 2 else scores.mean(-1)

    return statistic


def pearson(found: Array, wanted: Array) -> Array:
    """Pearson's correlation; NaN where a column is constant."""
    found = found - found.mean(-1, keepdims=True)
    wanted = wanted - wanted.mean(-1, keepdims=True)
    scale = np.sqrt(np.square(found).sum(-1) * np.square(wanted).sum(-1))
    return (found * wanted).sum(-1) / np.where(scale == 0, np.nan, scale)


def spearman(found: Array, wanted: Array) -> Array:
    """Spearman's correlation, ties at their mean rank; NaN where a column is constant."""
    return pearson(rankdata(found, axis=-1), rankdata(wanted, axis=-1))


def calibration_error(confidence: Array, correct: Array) -> Array:
    """The expected calibration error: how far confidence is from accuracy, bin by bin.

    Guo et al. (2017), https://arxiv.org/abs/1706.04599. On few examples it comes out too large, and
    resamples, which have fewer different ones, too large again.
    """
    gaps = _counted(_bins(confidence), BINS, weights=correct - confidence)
    return np.abs(gaps).sum(-1) / confidence.shape[-1]


def reliability(confidence: Array, correct: Array) -> list[dict[str, float | int]]:
    """For each bin of the confidence: its edges, how many examples, their confidence, accuracy.

    The last two are NaN for an empty bin.
    """
    bins = _bins(confidence)
    counts, *sums = (_counted(bins, BINS, weights) for weights in (None, confidence, correct))
    means = np.stack(sums) / np.where(counts == 0, np.nan, counts)
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "count": int(counts[i]),
            "confidence": float(means[0, i]),
            "accuracy": float(means[1, i]),
        }
        for i in range(BINS)
    ]


def bootstrap(
    statistic: Statistic,
    checkpoints: Sequence[Columns],
    resamples: int,
    seed: int,
    model: int = 0,
) -> Array:
    """Resampled means of a statistic over the checkpoints of a model.

    In each resample examples are drawn with replacement, the same for every checkpoint, and
    checkpoints with replacement (crossed factors: Owen's pigeonhole bootstrap, 2007). What is drawn
    of the examples depends on the seed and their number alone, so that the differences of two
    models' resamples are those of the paired bootstrap. Checkpoints of two models are drawn
    independently: ``model`` is a number of each.

    Returns:
        The values, ``(..., resamples)``, with in front what the statistic has there.
    """
    rng = np.random.default_rng([seed, 0])
    examples = len(checkpoints[0][0])
    parts = []
    for rows in _chunks(resamples, examples):
        drawn = rng.integers(examples, size=(rows, examples), dtype=np.int32)
        parts.append([statistic(*(column[drawn] for column in columns)) for columns in checkpoints])
    values = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)  # (checkpoints, resamples, ...)
    shape = (len(checkpoints), resamples)
    chosen = np.random.default_rng([seed, 1 + model]).integers(len(checkpoints), size=shape)
    return np.moveaxis(values[chosen, np.arange(resamples)].mean(0), 0, -1)


def interval(values: Array, examples: int | None = None) -> tuple[Array, Array]:
    """The 95% percentile interval of resampled values (last axis), NaN left out.

    As many values lie below the lower bound as above the upper one.

    The bounds are values that occurred, so infinite ones do no harm. NaN if all values are.

    Args:
        examples: of how many the values are shares. All of them, or none, leave nothing to
            resample: the bounds are those of Clopper and Pearson (1934). None: they are no shares.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        low, high = (
            sign * np.nanquantile(sign * values, 0.025, axis=-1, method="inverted_cdf")
            for sign in (1, -1)
        )
    if examples:
        least = 0.025 ** (1 / examples)
        low, high = np.where(low == 1, least, low), np.where(high == 0, 1 - least, high)
    return low, high


def p_value(differences: Array) -> float:
    """How sure it is that two models differ, from resampled differences; two-sided.

    Twice the share of them that lie on the smaller side of 0 (0 lies on both); at least one over
    their number. It is below 0.05 exactly where their :func:`interval` leaves 0 out. NaN if all
    are NaN, which are left out.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan")
    smaller_side = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1, max(1, 2 * smaller_side) / len(known)))


def welch_test(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """p that two sets of checkpoints differ in their means (Welch's t-test).

    NaN if either has fewer than two, or if all values of both are alike.
    """
    if min(len(ours), len(theirs)) < 2 or not np.isfinite((*ours, *theirs)).all():
        return float("nan")
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that one side is all alike
        return float(ttest_ind(ours, theirs, equal_var=False).pvalue)


def adjusted(ps: Sequence[float]) -> list[float]:
    """p-values under control of the false discovery rate (Benjamini and Hochberg 1995).

    NaN stays NaN, and does not count as a test.
    """
    every = np.array(ps, dtype=float)
    known = ~np.isnan(every)
    every[known] = false_discovery_control(every[known])
    return every.tolist()


def _chunks(rows: int, examples: int) -> Iterator[int]:
    size = max(1, _AT_ONCE // examples)
    for start in range(0, rows, size):
        yield min(size, rows - start)


def _confusion(prediction: Array, answer: Array, classes: int) -> Array:
    """Counts ``(..., answers, predictions)``."""
    counts = _counted(answer * classes + prediction, classes**2)
    return counts.reshape(*counts.shape[:-1], classes, classes)


def _counted(numbers: Array, size: int, weights: Array | None = None) -> Array:
    """How often, or with which weight, each number below ``size`` occurs on the last axis."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    shifted = rows + size * np.arange(len(rows))[:, None]
    flat = None if weights is None else weights.ravel()
    counts = np.bincount(shifted.ravel(), weights=flat, minlength=size * len(rows))
    return counts.astype(float).reshape(*numbers.shape[:-1], size)


def _bins(confidence: Array) -> Array:
    """The number of the bin, of which each has its upper edge, but not its lower one."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
