"""The report's figures against scipy."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, chi2, norm, permutation_test
from sklearn.metrics import f1_score

from petals.report import statistics


def integers(seed: int, count: int = 300, classes: int = 5, right: float = 0.7):
    rng = np.random.default_rng(seed)
    actual = rng.integers(classes, size=count)
    sides = [np.where(rng.random(count) < right, actual, rng.integers(classes, size=count)) for _ in range(2)]
    return actual, *sides


def plain_macro_f1(actual: np.ndarray, predicted: np.ndarray) -> float:
    """As scikit-learn's over the classes that occur in `actual`, which takes fifty times as long."""
    hits, actual_count, said = (
        np.bincount(each, minlength=20) for each in (actual[actual == predicted], actual, predicted)
    )
    there = actual_count > 0
    return float(np.mean(2 * hits[there] / (actual_count + said)[there]))


def test_the_plain_macro_f1_is_scikit_learns():
    actual, base, head = integers(5, count=60, classes=20)
    for predicted in (base, head, actual):
        expected = f1_score(actual, predicted, labels=np.unique(actual), average="macro")
        assert plain_macro_f1(actual, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_the_interval_is_that_of_scipys_paired_bootstrap():
    actual, base, head = integers(1)

    def difference(actual, base, head, axis=-1):
        return np.mean(head == actual, axis=axis) - np.mean(base == actual, axis=axis)

    def f1_difference(actual, base, head):
        return plain_macro_f1(actual, head) - plain_macro_f1(actual, base)

    ours = statistics.bootstrap(actual, base, head, 5)
    rng = np.random.default_rng(7)
    options = dict(paired=True, method="percentile", rng=rng)
    theirs = bootstrap((actual, base, head), difference, n_resamples=5000, vectorized=True, **options)
    assert np.allclose([ours["accuracy"].low, ours["accuracy"].high], theirs.confidence_interval, atol=0.007)
    draws = [rng.integers(300, size=300) for _ in range(800)]
    expected = np.percentile([f1_difference(actual[d], base[d], head[d]) for d in draws], [2.5, 97.5])
    assert np.allclose([ours["macro_f1"].low, ours["macro_f1"].high], expected, atol=0.012)


def test_a_resample_without_a_class_leaves_that_class_out():
    # One image of class 1, wrong on both sides: macro F1 is 1/2 where the class is drawn, else 1 on both
    # sides, so the difference is 0 in each resample; counting an absent class as 0 would not change that,
    # counting it for one side only would.
    actual = np.array([0] * 9 + [1])
    wrong = np.zeros(10, dtype=int)
    interval = statistics.bootstrap(actual, wrong, wrong, 2)["macro_f1"]
    assert (interval.low, interval.high) == (0, 0)
    # Head has it right: where it is drawn (two resamples of three) head gains more than 1/2, else nothing.
    interval = statistics.bootstrap(actual, wrong, actual, 2)["macro_f1"]
    assert interval.low == 0
    assert 0.5 < interval.high < 1


def test_the_bootstrap_is_repeatable_in_batches(monkeypatch):
    actual, base, head = integers(3)
    whole = statistics.bootstrap(actual, base, head, 5)
    assert statistics.bootstrap(actual, base, head, 5) == whole
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 5000)
    assert statistics.bootstrap(actual, base, head, 5) == whole


def test_the_bootstrap_of_a_huge_input_is_left_out_at_once():
    rng = np.random.default_rng(0)
    actual, base, head = rng.integers(50_000, size=(3, 400_000))
    assert statistics.bootstrap(actual, base, head, 50_000) == {}


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 3), (1, 9), (14, 10), (0, 24)])
def test_mcnemar_with_few_discordant_pairs_is_the_binomial_test(won, lost):
    test = statistics.mcnemar(*discordant(won, lost))
    expected = binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert (test.won, test.lost, test.method) == (won, lost, "exact binomial")
    assert test.p == pytest.approx(expected)


@pytest.mark.parametrize(("won", "lost"), [(13, 12), (15, 15), (40, 20), (61, 34)])
def test_mcnemar_with_many_is_chi_square(won, lost):
    test = statistics.mcnemar(*discordant(won, lost))
    statistic = max(0, abs(won - lost) - 1) ** 2 / (won + lost)
    assert test.method.startswith("chi-square")
    assert test.p == pytest.approx(chi2.sf(statistic, df=1))


def discordant(won: int, lost: int):
    actual = np.ones(won + lost + 5, dtype=int)
    base, head = actual.copy(), actual.copy()
    base[:won] = 0
    head[won : won + lost] = 0
    return actual, base, head


@pytest.mark.parametrize(
    ("won", "lost", "beyond"), [(4, 0, False), (5, 0, False), (6, 0, True), (7, 1, False), (9, 2, False), (10, 1, True)]
)
def test_intervals_call_no_difference_real_that_mcnemars_test_does_not(won, lost, beyond):
    actual = np.arange(200) % 4
    other = (actual + 1) % 4
    base = np.where(np.arange(200) < won, other, actual)
    head = np.where(np.arange(200) >= 200 - lost, other, actual)
    for interval in statistics.bootstrap(actual, base, head, 4).values():
        assert interval.beyond_noise is beyond and interval.high > 0
    assert (binomtest(won, won + lost).pvalue < 0.05) == beyond


@pytest.mark.parametrize("count", [2, 3, 5, 6, 40])
def test_the_mean_of_few_differences_is_told_from_zero_only_where_their_signs_could_not_all_be_chance(count):
    differences = np.linspace(0.01, 0.02, count)
    interval = statistics.mean_interval(differences)
    assert interval.beyond_noise == (2 / 2**count < 0.05) and interval.widened != interval.beyond_noise
    expected = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=5000)
    assert interval.beyond_noise == (expected.pvalue < 0.05)


def test_swapping_gives_the_share_of_all_swaps_that_differ_as_much():
    actual, base, head = integers(2, count=14, classes=4)
    here = abs(plain_macro_f1(actual, head) - plain_macro_f1(actual, base))
    as_large = 0
    for swaps in itertools.product((False, True), repeat=14):
        ours, theirs = np.where(swaps, head, base), np.where(swaps, base, head)
        as_large += abs(plain_macro_f1(actual, theirs) - plain_macro_f1(actual, ours)) >= here - 1e-12
    counts = np.ones(14, dtype=int)
    found = statistics.swapping(actual, base, head, counts, 4, resamples=20_000)
    assert found == pytest.approx(as_large / 2**14, abs=0.015)
    assert statistics.swapping(actual, base, base, counts, 4, resamples=100) == 1


@pytest.mark.slow
def test_the_interval_of_one_model_is_corrected_for_bias():
    actual, predicted, _ = integers(5, count=60, classes=20)
    ours = statistics.macro_f1_interval(actual, predicted, 20)

    rng = np.random.default_rng(7)
    kept = [rng.integers(60, size=60) for _ in range(2000)]
    here, *scores = (plain_macro_f1(actual[d], predicted[d]) for d in [slice(None), *kept])
    shift = 2 * norm.ppf(np.mean(np.array(scores) < here))
    expected = np.percentile(scores, 100 * norm.cdf([shift - 1.96, shift + 1.96]))
    assert np.allclose([ours.low, ours.high], expected, atol=0.015)
    assert ours.high > np.percentile(scores, 97.5) + 0.01  # where few images a class make macro F1 too low
    assert statistics.macro_f1_interval(actual, actual, 20) is None
