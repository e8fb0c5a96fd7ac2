"""Statistics of alum-robustness, against libraries, enumeration and simulation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from alum_fairseq.robustness import statistics
from alum_fairseq.robustness.statistics import (
    adjusted,
    area_up_to,
    bootstrap,
    calibration_error,
    f1,
    interval,
    matthews,
    mean,
    median_above_zero,
    p_value,
    pearson,
    ratio,
    reliability,
    share_above,
    spearman,
    welch_test,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_matthews_and_f1_are_those_of_scikit_learn(classes: int, rng: np.random.Generator) -> None:
    answers = rng.integers(classes, size=(6, 80))
    predictions = np.where(rng.random((6, 80)) < 0.6, answers, rng.integers(classes, size=(6, 80)))
    average = "binary" if classes == 2 else "macro"
    wanted_mcc = [matthews_corrcoef(a, p) for a, p in zip(answers, predictions, strict=True)]
    wanted_f1 = [
        f1_score(a, p, average=average, labels=range(classes), pos_label=1)
        for a, p in zip(answers, predictions, strict=True)
    ]
    assert matthews(classes)(predictions, answers) == pytest.approx(wanted_mcc)
    assert f1(classes)(predictions, answers) == pytest.approx(wanted_f1)
    assert matthews(classes)(predictions[0], answers[0]) == pytest.approx(wanted_mcc[0])


def test_matthews_and_f1_of_a_constant_prediction_are_zero() -> None:
    answers, constant = np.array([0, 1, 1, 0]), np.zeros(4, dtype=int)
    assert matthews(2)(constant, answers) == 0
    assert matthews(2)(answers, constant) == 0
    assert f1(2)(constant, answers) == 0
    # A class that nobody names counts as 0 in the mean over classes.
    assert f1(3)(answers, answers) == pytest.approx(2 / 3)


def test_correlations_are_those_of_scipy(rng: np.random.Generator) -> None:
    found = rng.normal(size=(5, 40)).round(1) + 1000  # with ties, far from zero
    wanted = found + rng.normal(size=(5, 40)).round(1)
    pairs = list(zip(found, wanted, strict=True))
    assert pearson(found, wanted) == pytest.approx([stats.pearsonr(*p)[0] for p in pairs])
    assert spearman(found, wanted) == pytest.approx([stats.spearmanr(*p)[0] for p in pairs])
    assert np.isnan(pearson(np.ones(4), np.arange(4.0)))
    assert np.isnan(spearman(np.arange(4.0), np.ones(4)))


def test_calibration_error_by_hand() -> None:
    # Two examples in the bin (14/15, 1], two in (7/15, 8/15], one exactly on an edge: in (0, 1/15].
    confidence = np.array([0.95, 0.99, 0.5, 0.52, 1 / 15])
    correct = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    wanted = (abs(1 - 1.94) + abs(2 - 1.02) + 1 / 15) / 5
    assert calibration_error(confidence, correct) == pytest.approx(wanted)
    rows = np.stack([confidence, confidence[::-1]]), np.stack([correct, correct])
    assert calibration_error(*rows)[0] == pytest.approx(wanted)
    table = reliability(confidence, correct)
    assert [one["count"] for one in table] == [1, *[0] * 6, 2, *[0] * 6, 2]
    assert table[7]["confidence"] == pytest.approx(0.51)
    assert table[7]["accuracy"] == 1
    assert math.isnan(table[1]["accuracy"])
    assert (table[0]["low"], table[-1]["high"]) == (0, 1)


def test_calibration_error_is_the_gap_of_the_reliability_table(rng: np.random.Generator) -> None:
    confidence = rng.uniform(0.3, 1, 500)
    correct = (rng.random(500) < confidence**2).astype(float)
    gaps = [
        one["count"] * abs(one["confidence"] - one["accuracy"])
        for one in reliability(confidence, correct)
        if one["count"]
    ]
    assert calibration_error(confidence, correct) == pytest.approx(sum(gaps) / 500)


def test_radii() -> None:
    epsilon = np.array([0.0, 0.2, 0.5, math.inf, math.inf])
    assert share_above([0, 0.2, 0.3, 9])(epsilon).tolist() == [0.8, 0.6, 0.6, 0.4]
    assert median_above_zero(epsilon[:3]) == 0.35  # what is wrong already does not count
    assert median_above_zero(epsilon) == math.inf
    assert math.isnan(median_above_zero(np.zeros(3)))
    assert median_above_zero(np.array([0.1, math.inf, math.inf])) == math.inf
    # The area is that under the curve, by a fine Riemann sum.
    grid = np.linspace(0, 1, 20_001)
    wanted = share_above(grid)(epsilon).mean()
    assert area_up_to(1)(epsilon) == pytest.approx(wanted, abs=1e-3)
    assert area_up_to(1)(epsilon) == pytest.approx((0.2 + 0.5 + 1 + 1) / 5)
    assert area_up_to(0.1)(np.full(300, math.inf)) == 1  # to the bit, as an interval needs it


def test_ratio() -> None:
    assert ratio(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == 2
    assert np.isnan(ratio(np.array([1.0]), np.array([0.0])))


def test_bootstrap_of_few_examples_has_the_exact_distribution() -> None:
    values = np.array([0.0, 1.0, 5.0, 7.0])
    exact = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    found = bootstrap(mean, [(values,)], resamples=20_000, seed=1)
    assert np.mean(found) == pytest.approx(np.mean(exact), abs=0.05)
    assert np.std(found) == pytest.approx(np.std(exact), rel=0.03)
    assert stats.ks_2samp(found, exact).statistic < 0.02
    assert np.array(interval(found)) == pytest.approx(np.array(interval(np.array(exact))), abs=0.3)


def test_bootstrap_draws_checkpoints_and_the_same_examples_for_all() -> None:
    # Two checkpoints that differ by 10 on every example: a resample is one, the other, or both.
    values = np.array([0.0, 1.0, 2.0])
    found = bootstrap(mean, [(values,), (values + 10,)], resamples=4000, seed=3)
    alone = bootstrap(mean, [(values,)], resamples=4000, seed=3)
    shift = np.round(found - alone, 9)
    kinds, counts = np.unique(shift, return_counts=True)
    assert kinds.tolist() == [0, 5, 10]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    again = bootstrap(mean, [(values,), (values + 10,)], resamples=4000, seed=3)
    assert np.array_equal(found, again)
    other = bootstrap(mean, [(values,), (values + 10,)], resamples=4000, seed=3, model=1)
    assert not np.array_equal(found, other)


def test_paired_bootstrap_knows_that_the_examples_are_the_same(rng: np.random.Generator) -> None:
    hard = rng.normal(size=50)
    one, other = (bootstrap(mean, [(hard + shift,)], 500, seed=1) for shift in (0, 0.1))
    assert other - one == pytest.approx(0.1)  # however hard the examples drawn


def test_bootstrap_in_chunks_and_of_a_curve(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = rng.normal(size=40)
    checkpoints = [(values,), (values * 2,)]
    curve = bootstrap(share_above([-1, 0, 1]), checkpoints, 100, seed=1)
    assert curve.shape == (3, 100)
    for row, threshold in enumerate((-1, 0, 1)):
        single = bootstrap(lambda x, t=threshold: (x > t).mean(-1), checkpoints, 100, seed=1)
        assert np.array_equal(curve[row], single)
    monkeypatch.setattr(statistics, "_AT_ONCE", 7 * 40)
    assert bootstrap(share_above([-1, 0, 1]), checkpoints, 100, seed=1).shape == (3, 100)


def test_interval_with_infinite_and_undefined_values() -> None:
    values = np.array([*range(97), math.inf, math.inf, math.inf, math.nan])
    assert interval(values) == (2, math.inf)
    assert interval(np.arange(1, 1001.0)) == (25, 976)  # 24 on either side
    assert np.isnan(interval(np.array([math.nan, math.nan]))).all()


@pytest.mark.parametrize("examples", [1, 6, 32, 1000])
def test_of_all_or_none_the_interval_is_exact(examples: int) -> None:
    for hits in (0, examples):
        exact = stats.binomtest(hits, examples).proportion_ci(0.95, "exact")
        share = np.full(examples, hits > 0)
        found = interval(bootstrap(mean, [(share,), (share,)], 200, seed=1), examples)
        assert found == pytest.approx((exact.low, exact.high), abs=1e-9)
    # Where only the resamples at one end are all alike, or it is no share, nothing changes.
    assert interval(np.linspace(0, 1, 2001), examples)[0] == pytest.approx(0.0245, abs=1e-3)
    assert interval(np.ones(9)) == (1, 1)


def test_interval_covers_the_truth(rng: np.random.Generator) -> None:
    covered = 0
    for trial in range(400):
        sample = rng.random(150) < 0.8
        low, high = interval(bootstrap(mean, [(sample,)], 300, seed=trial))
        covered += low <= 0.8 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_interval_over_checkpoints_covers_what_training_again_would_give(
    rng: np.random.Generator,
) -> None:
    # Checkpoints differ by more than the examples do: examples alone would cover little.
    covered = {"hierarchical": 0, "examples alone": 0}
    for trial in range(200):
        effects = rng.normal(scale=0.5, size=8)
        hard = rng.normal(size=100)
        checkpoints = [(hard + one + 0.3 * rng.normal(size=100),) for one in effects]
        low, high = interval(bootstrap(mean, checkpoints, 300, seed=trial))
        covered["hierarchical"] += low <= 0 <= high
        together = (np.mean([columns[0] for columns in checkpoints], axis=0),)
        low, high = interval(bootstrap(mean, [together], 300, seed=trial))
        covered["examples alone"] += low <= 0 <= high
    assert covered["hierarchical"] / 200 >= 0.88
    assert covered["examples alone"] / 200 < 0.8


@pytest.mark.parametrize("resamples", [100, 200, 333, 1000])
def test_p_is_below_its_level_exactly_where_the_interval_leaves_zero_out(
    resamples: int, rng: np.random.Generator
) -> None:
    seen = set()
    for _ in range(400):
        draws = np.round(rng.normal(loc=rng.uniform(-3, 3), size=resamples), 1)
        draws[rng.random(resamples) < 0.05] = math.nan
        low, high = interval(draws)
        sure = p_value(draws) < 0.05
        assert sure == (not low <= 0 <= high)
        assert p_value(draws) == p_value(-draws)
        seen.add(sure)
    assert seen == {True, False}


def test_p_by_hand() -> None:
    assert p_value(np.array([-1.0, 1, 2, 3, math.inf, math.nan])) == 2 / 5
    assert p_value(np.array([0.0, 0, 0, 1])) == 1  # 0 lies on both sides
    assert p_value(np.arange(1, 1001.0)) == 1 / 1000
    assert math.isnan(p_value(np.array([math.nan])))


def heavy_tailed(hard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.exp(hard + 0.5 * rng.normal(size=len(hard)))


@pytest.mark.parametrize(
    ("statistic", "make", "most"),
    [
        (mean, lambda hard, rng: (hard + rng.normal(size=len(hard)) > -0.5,), 0.08),
        (median_above_zero, lambda hard, rng: (heavy_tailed(hard, rng) * (hard > -1),), 0.08),
        (ratio, lambda hard, rng: (heavy_tailed(hard, rng), heavy_tailed(hard, rng)), 0.11),
    ],
)
def test_alike_models_are_rarely_said_to_differ(
    statistic: statistics.Statistic, make: Any, most: float, rng: np.random.Generator
) -> None:
    # The interval of the difference covers 0 as often: 95 of 100, or nearly.
    sure = 0
    for trial in range(300):
        hard = rng.normal(size=100)
        ours, theirs = (
            bootstrap(statistic, [make(hard, rng)], 200, trial, model) for model in range(2)
        )
        sure += p_value(theirs - ours) < 0.05
    assert sure / 300 <= most


def test_p_is_uniform_if_models_are_alike(rng: np.random.Generator) -> None:
    ps = []
    for trial in range(300):
        hard = rng.normal(size=100)
        one, other = (
            bootstrap(mean, [(hard + rng.normal(size=100),)], 400, trial, k) for k in range(2)
        )
        ps.append(p_value(other - one))
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_p_is_uniform_if_the_checkpoints_of_a_model_fail_alike(rng: np.random.Generator) -> None:
    # Each model has examples that all its checkpoints find hard. Drawn checkpoint by checkpoint,
    # these would count several times, and p would be too small.
    ps = []
    for trial in range(300):
        draws = []
        for model in range(2):
            hard = rng.normal(size=100)
            checkpoints = [(hard + 0.1 * rng.normal(size=100),) for _ in range(4)]
            draws.append(bootstrap(mean, checkpoints, 400, trial, model))
        ps.append(p_value(draws[1] - draws[0]))
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_welch_by_the_formula() -> None:
    a, b = np.array([90.0, 91.0, 93.0]), np.array([94.0, 95.5])
    variances = a.var(ddof=1) / 3, b.var(ddof=1) / 2
    t = (a.mean() - b.mean()) / math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 1)
    assert welch_test(a, b) == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    assert math.isnan(welch_test([90.0], [91.0, 92.0]))
    assert math.isnan(welch_test([90.0, 90.0], [91.0, 91.0]))
    assert math.isnan(welch_test([math.inf, 1.0], [2.0, 3.0]))


def test_false_discoveries_by_hand() -> None:
    # Sorted: 0.01 * 4 / 1, 0.02 * 4 / 2, 0.03 * 4 / 3, 0.5 * 4 / 4; then never falling.
    found = adjusted([0.5, 0.01, math.nan, 0.03, 0.02])
    assert math.isnan(found[2])
    assert [found[i] for i in (0, 1, 3, 4)] == pytest.approx([0.5, 0.04, 0.04, 0.04])
    assert adjusted([]) == []
    assert math.isnan(adjusted([math.nan])[0])
