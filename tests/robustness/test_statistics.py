"""Statistics of alum-robustness, against libraries, enumeration and simulation."""

from __future__ import annotations

import itertools
import math

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
    pearson,
    randomization_test,
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
    assert interval(np.arange(1, 1001.0)) == (25, 975)
    assert np.isnan(interval(np.array([math.nan, math.nan]))).all()


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


def exact_p(statistic: statistics.Statistic, ours: list, theirs: list) -> float:
    """Over all ways to swap the outcomes of examples."""
    size = len(ours[0][0])

    def difference(swapped: np.ndarray) -> float:
        parts = []
        for left, right in zip(ours, theirs, strict=True):
            a = [np.where(swapped, y, x) for x, y in zip(left, right, strict=True)]
            b = [np.where(swapped, x, y) for x, y in zip(left, right, strict=True)]
            parts.append(float(statistic(*b)) - float(statistic(*a)))
        return abs(sum(parts))

    observed = difference(np.zeros(size, dtype=bool))
    every = [difference(np.array(s, dtype=bool)) for s in itertools.product([0, 1], repeat=size)]
    return float(np.mean([one >= observed - 1e-12 for one in every]))


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize(
    ("statistic", "columns"),
    [
        (mean, "x"),
        (median_above_zero, "x"),
        (ratio, "xw"),
        (pearson, "xy"),
        (spearman, "xy"),
        (matthews(2), "pa"),
        (calibration_error, "ch"),
    ],
)
def test_randomization_test_agrees_with_all_swaps(
    statistic: statistics.Statistic, columns: str, pairs: int, rng: np.random.Generator
) -> None:
    size = 9
    answers, y = rng.integers(2, size=size), rng.normal(size=size)

    def checkpoint(shift: float) -> tuple[np.ndarray, ...]:
        known = {
            "x": rng.normal(size=size) + shift + y,
            "y": y,
            "w": rng.uniform(1, 2, size=size),
            "p": np.where(rng.random(size) < 0.5 + shift / 4, answers, 1 - answers),
            "a": answers,
            "c": rng.uniform(0.5, 1, size=size),
            "h": (rng.random(size) < 0.7).astype(float),
        }
        return tuple(known[name] for name in columns)

    ours, theirs = ([checkpoint(shift) for _ in range(pairs)] for shift in (0, 0.8))
    wanted = exact_p(statistic, ours, theirs)
    trials = 4000
    found = randomization_test(statistic, ours, theirs, trials, seed=1)
    assert found == pytest.approx(wanted, abs=4 * math.sqrt(0.25 / trials))


def test_p_is_uniform_if_models_are_alike(rng: np.random.Generator) -> None:
    ps = []
    for trial in range(300):
        hard = rng.normal(size=40)
        ours, theirs = ([(hard + rng.normal(size=40),)] for _ in range(2))
        ps.append(randomization_test(mean, ours, theirs, 199, seed=trial))
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_p_is_uniform_if_the_checkpoints_of_a_model_fail_alike(rng: np.random.Generator) -> None:
    # Each model has examples that all its checkpoints find hard. Swapped pair by pair, these would
    # count several times, and p would be too small.
    ps = []
    for trial in range(300):
        models = [rng.normal(size=40) for _ in range(2)]
        ours, theirs = ([(hard + 0.1 * rng.normal(size=40),) for _ in range(4)] for hard in models)
        ps.append(randomization_test(mean, ours, theirs, 199, seed=trial))
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_p_of_a_great_difference_of_none_and_of_an_undefined_one() -> None:
    ones, zeros = (np.ones(30),), (np.zeros(30),)
    assert randomization_test(mean, [ones], [zeros], 999, seed=1) == 1 / 1000
    assert randomization_test(mean, [ones], [ones], 999, seed=1) == 1
    nowhere = (np.full(30, math.inf),)
    assert math.isnan(randomization_test(median_above_zero, [nowhere], [nowhere], 99, seed=1))
    assert math.isnan(randomization_test(median_above_zero, [ones], [nowhere], 99, seed=1))
    # A model with more checkpoints: the pairs count.
    assert randomization_test(mean, [ones, ones], [zeros], 999, seed=1) == 1 / 1000


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
