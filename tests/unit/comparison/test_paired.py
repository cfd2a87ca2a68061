"""Paired differences and their intervals."""

import numpy as np
import pandas as pd
import pytest

from quant.comparison import paired
from quant.comparison.paired import (
    compare_pair,
    detectable,
    holm,
    paired_difference,
    paired_differences,
)
from tests.unit.comparison.studies import text_lengths


def sets(n: int, seed: int, effect: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NLL sums of two methods on n sequences of unequal length, which differ by `effect` a token on average."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 200, n).astype(float)
    base = rng.normal(3, 0.5, n)
    return (base + rng.normal(effect, 0.03, n)) * tokens, base * tokens, tokens


def test_mean_is_per_token() -> None:
    a, b, tokens = sets(40, 0)
    found = paired_difference(a, b, tokens, 499, 0)
    assert found.mean == pytest.approx((a.sum() - b.sum()) / tokens.sum())
    assert found.low < found.mean < found.high


def test_identical_is_zero_to_zero() -> None:
    a, _, tokens = sets(40, 0)
    assert tuple(paired_difference(a, a.copy(), tokens, 499, 0)) == (0, 0, 0, 1, 0)


def test_one_sequence_says_nothing() -> None:
    found = paired_difference(np.array([9.0]), np.array([7.0]), np.array([4.0]), 499, 0)
    assert tuple(found) == (0.5, -np.inf, np.inf, 1, np.inf)


def test_same_difference_everywhere_has_no_width() -> None:
    tokens = np.full(8, 100.0)
    found = paired_difference(3 * tokens, 2 * tokens, tokens, 499, 0)
    assert tuple(found) == (1, 1, 1, 0, 0)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_swapping_changes_only_the_sign(n: int) -> None:
    a, b, tokens = sets(n, 1)
    one, other = (paired_difference(*pair, tokens, 999, 7) for pair in ((a, b), (b, a)))
    assert np.isfinite(one).all()
    np.testing.assert_allclose([other.mean, other.low, other.high], [-one.mean, -one.high, -one.low], rtol=1e-9)


def test_same_seed_same_interval() -> None:
    a, b, tokens = sets(20, 1)
    assert paired_difference(a, b, tokens, 499, 3) == paired_difference(a, b, tokens, 499, 3)
    assert paired_difference(a, b, tokens, 499, 3) != paired_difference(a, b, tokens, 499, 4)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_one_odd_sequence_gives_an_interval(n: int) -> None:
    """All alike but one: bounds are numbers, in order, about the mean."""
    tokens = np.full(n, 100.0)
    a = 3 * tokens
    a[0] += 5
    found = paired_difference(a, 3 * tokens, tokens, 999, 0)
    assert np.isfinite(found).all()
    assert found.low <= found.mean <= found.high


def test_noise_that_sequences_share_cancels() -> None:
    """Pairing: sequences differ a hundred times more than methods do."""
    rng = np.random.default_rng(0)
    tokens = np.full(40, 100.0)
    base = rng.normal(3, 1, 40)
    found = paired_difference((base + rng.normal(0.01, 0.01, 40)) * tokens, base * tokens, tokens, 999, 0)
    assert 0 < found.low < 0.01 < found.high < 0.02


def test_each_sequence_keeps_its_own_length() -> None:
    """Lengths differ by far more than rates do."""
    rng = np.random.default_rng(0)
    tokens = np.exp(rng.normal(4, 1, 40))
    found = paired_difference((1 + rng.normal(0, 0.001, 40)) * tokens, 0 * tokens, tokens, 999, 0)
    assert 0.998 < found.low < found.mean < found.high < 1.002


def test_interval_is_about_the_rate_per_token() -> None:
    """Long sequences differ by 0.1 a token, short ones by nothing."""
    rng = np.random.default_rng(0)
    tokens = np.tile([1000.0, 10.0], 20)
    difference = (np.tile([0.1, 0.0], 20) + rng.normal(0, 0.001, 40)) * tokens
    found = paired_difference(difference, 0 * tokens, tokens, 999, 0)
    assert 0.095 < found.low < found.mean < found.high < 0.105


def skewed_rates(rng: np.random.Generator, shape: tuple[int, ...], skewness: float) -> np.ndarray:
    """Rates of mean 0 and standard deviation 0.1 with that skewness (a shifted gamma)."""
    k = 4 / skewness**2
    return (rng.gamma(k, 1, shape) - k) / np.sqrt(k) * 0.1


def simulated_sums(rng: np.random.Generator, shape: tuple[int, ...], tokens: np.ndarray, skewness: float) -> np.ndarray:
    """NLL sums [..., n] about 0: a skewed rate that a sequence's tokens share, and noise of each token's own."""
    return tokens * skewed_rates(rng, shape, skewness) + np.sqrt(tokens) * rng.normal(0, 0.3, shape)


# as in the data: 32 windows, or 110 texts of any length; between methods the skewness is at most about 1
REAL_SHAPES = [(32, False, 0.1), (32, False, 1.0), (110, True, 0.1), (110, True, 1.0), (110, False, 1.0)]


def simulated_divergences(rng: np.random.Generator, shape: tuple[int, ...], tokens: np.ndarray) -> np.ndarray:
    """KL sums [..., n], mean 0.1 a token: how hard a sequence is, which methods share, times what is a method's own;
    both positive and skewed to the right, as measured divergences are."""
    text = rng.gamma(8, 1 / 8, (*shape[:-2], 1, shape[-1]))
    return 0.1 * tokens * text * rng.gamma(16, 1 / 16, shape)


@pytest.mark.parametrize(("n", "ragged", "skewness"), [*REAL_SHAPES, (32, False, None), (110, True, None)])
def test_intervals_cover_a_known_difference_as_often_as_they_say(n: int, ragged: bool, skewness: float | None) -> None:
    """95 ± 2 % of 1,000 simulations; without a skewness, of a KL, whose every value is above 0."""
    tokens, rng = text_lengths(n, ragged), np.random.default_rng(0)
    if skewness is None:
        two = simulated_divergences(rng, (1000, 2, n), tokens)
        differences = 1.5 * two[:, 0] - two[:, 1]
    else:
        differences = simulated_sums(rng, (1000, n), tokens, skewness) + 0.05 * tokens
    found = paired_differences(differences, tokens, 1999, 0)
    assert 0.93 <= np.mean([x.low <= 0.05 <= x.high for x in found]) <= 0.97


@pytest.mark.parametrize(("n", "ragged", "skewness"), [*REAL_SHAPES, (32, False, None)])
def test_without_a_difference_few_reports_claim_one(n: int, ragged: bool, skewness: float | None) -> None:
    """Six methods that err alike: 15 pairs a report, in at most 5 % of 1,000 reports one is claimed; without a
    skewness, by KL."""
    tokens, rng = text_lengths(n, ragged), np.random.default_rng(1)
    shape = (1000, 6, n)
    methods = (
        simulated_divergences(rng, shape, tokens) if skewness is None else simulated_sums(rng, shape, tokens, skewness)
    )
    first, second = np.triu_indices(6, 1)
    differences = (methods[:, first] - methods[:, second]).reshape(-1, n)
    p = np.reshape([x.p for x in paired_differences(differences, tokens, 2999, 0)], (1000, 15))
    assert np.mean([holm(row).min() <= 0.05 for row in p]) <= 0.05
    # a question's own pairs are a family too: those of one method, or those of three
    for own in ([0, 1, 2, 3, 4], [0, 1, 5]):
        assert np.mean([holm(row[own]).min() <= 0.05 for row in p]) <= 0.05


def test_a_small_p_means_an_interval_without_zero() -> None:
    tokens = text_lengths(32, True)
    differences = simulated_sums(np.random.default_rng(2), (200, 32), tokens, 0.5) + 0.03 * tokens
    found = paired_differences(differences, tokens, 1999, 0)
    assert 20 < sum(x.p < 0.049 for x in found) < 180
    assert all(x.low > 0 or x.high < 0 for x in found if x.p < 0.049)


def slow_bootstrap(d: np.ndarray, w: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """low, high, p by loops over resamples that draw sequences one by one; p not under that of the t test."""

    def rate_and_error(d: np.ndarray, w: np.ndarray) -> tuple[float, float]:
        rate = sum(d) / sum(w)
        return rate, (len(d) / (len(d) - 1) * sum((x - rate * v) ** 2 for x, v in zip(d, w, strict=True))) ** 0.5 / sum(
            w
        )

    rate, error = rate_and_error(d, w)
    pivots = []
    for counts in np.random.default_rng(seed).multinomial(len(d), np.full(len(d), 1 / len(d)), resamples):
        drawn = np.repeat(np.arange(len(d)), counts)
        again, its_error = rate_and_error(d[drawn], w[drawn])
        pivots.append((again - rate) / its_error)
    above, below = sum(x >= rate / error for x in pivots), sum(x <= rate / error for x in pivots)
    low, high = np.quantile(pivots, [0.025, 0.975])
    p = max(2 * (min(above, below) + 1) / (resamples + 1), slow_t_test(rate / error, len(d)))
    return rate - high * error, rate - low * error, min(1, p)


def slow_t_test(t: float, n: int) -> float:
    """Two-sided p of Student's t with n - 1 degrees of freedom, by integrating its density."""
    x = np.linspace(abs(t), abs(t) + 400, 400_001)
    density = (1 + x**2 / (n - 1)) ** (-n / 2)
    whole = np.linspace(-400, 400, 800_001)
    return 2 * np.trapezoid(density, x) / np.trapezoid((1 + whole**2 / (n - 1)) ** (-n / 2), whole)


@pytest.mark.parametrize("n", [8, 13, 40])
def test_the_fast_bootstrap_is_the_slow_one(n: int) -> None:
    tokens = text_lengths(n, True)
    d = simulated_sums(np.random.default_rng(n), (n,), tokens, 1.0) + 0.02 * tokens
    found = paired_difference(d, 0 * d, tokens, 299, 4)
    np.testing.assert_allclose([found.low, found.high, found.p], slow_bootstrap(d, tokens, 299, 4), rtol=1e-4)


def test_resamples_and_differences_that_memory_does_not_hold_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text_lengths(13, True)
    d = simulated_sums(np.random.default_rng(13), (5, 13), tokens, 1.0)
    d[2] = 0.5 * tokens  # without spread: it has no pivots
    whole = paired_differences(d, tokens, 999, 4)
    monkeypatch.setattr(paired, "DRAWN_BYTES", 8 * 13 * 100)
    monkeypatch.setattr(paired, "PIVOT_BYTES", 8 * 999 * 3)
    assert max(map(len, paired.draws(13, 999, 4))) == 100
    np.testing.assert_allclose(paired_differences(d, tokens, 999, 4), whole, rtol=1e-12)


def slow_holm(p: list[float]) -> list[float]:
    """Each p's smallest level at which Holm's steps, one by one, reject it; by trying the candidate levels."""
    m = len(p)

    def rejected(level: float) -> set[int]:
        out: set[int] = set()
        for i in sorted(range(m), key=lambda i: p[i]):
            if p[i] * (m - len(out)) > level:
                break
            out.add(i)
        return out

    candidates = sorted({min(1.0, x * k) for x in p for k in range(1, m + 1)} | {1.0})
    return [next((level for level in candidates if i in rejected(level)), 1.0) for i in range(m)]


@pytest.mark.parametrize("m", [1, 2, 5, 9])
def test_holm_against_its_steps(m: int) -> None:
    rng = np.random.default_rng(m)
    for _ in range(20):
        p = rng.choice([0.001, 0.01, 0.02, 0.04, 0.3, 0.9], m).tolist()
        assert holm(p).tolist() == pytest.approx(slow_holm(p))


def test_holm_leaves_out_what_was_not_compared() -> None:
    assert holm([0.01, np.nan, 0.04]).tolist()[::2] == [0.02, 0.04] and np.isnan(holm([np.nan])).all()
    assert len(holm([])) == 0


def test_a_difference_of_the_smallest_size_is_shown_half_of_the_time() -> None:
    """Ten comparisons, one of which differs by what `detectable` says of its typical error."""
    tokens, rng = text_lengths(32, False), np.random.default_rng(3)
    noise = rng.normal(0, 0.1, (400, 32)) * tokens
    typical = 0.1 / np.sqrt(32)
    size = detectable(typical, 32, 10)
    p = np.array([x.p for x in paired_differences(noise + size * tokens, tokens, 3999, 0)])
    assert 0.40 <= (p * 10 <= 0.05).mean() <= 0.60
    assert detectable(typical, 1, 10) == np.inf


def test_pairs_must_be_of_the_same_sequences() -> None:
    a = pd.DataFrame({"sequence": [0, 1], "tokens": [5, 6], "nll": [10.0, 12.0]})
    b = a.assign(nll=[9.0, 11.5])
    assert compare_pair(a, b, 499, 0).mean == pytest.approx(1.5 / 11)
    both = a.assign(kl_tokens=[5, 6]), b.assign(kl_tokens=[5, 3])
    with pytest.raises(ValueError, match="different sequences"):
        compare_pair(*both, 499, 0)
    for changes in ({"tokens": [5, 7]}, {"sequence": [0, 2]}):
        with pytest.raises(ValueError, match="different sequences"):
            compare_pair(a, b.assign(**changes), 499, 0)
    with pytest.raises(ValueError, match="different sequences"):
        compare_pair(a, b[:1], 499, 0)
