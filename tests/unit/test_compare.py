"""Paired differences and their intervals."""

import numpy as np
import pandas as pd
import pytest

from quant.compare import compare_pair, paired_difference


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
    assert tuple(paired_difference(a, a.copy(), tokens, 499, 0)) == (0, 0, 0)


def test_one_sequence_says_nothing() -> None:
    found = paired_difference(np.array([9.0]), np.array([7.0]), np.array([4.0]), 499, 0)
    assert tuple(found) == (0.5, -np.inf, np.inf)


def test_same_difference_everywhere_has_no_width() -> None:
    tokens = np.full(8, 100.0)
    found = paired_difference(3 * tokens, 2 * tokens, tokens, 499, 0)
    assert tuple(found) == (1, 1, 1)


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
    assert 0.999 < found.low < found.mean < found.high < 1.001


def test_interval_is_about_the_rate_per_token() -> None:
    """Long sequences differ by 0.1 a token, short ones by nothing."""
    rng = np.random.default_rng(0)
    tokens = np.tile([1000.0, 10.0], 20)
    difference = (np.tile([0.1, 0.0], 20) + rng.normal(0, 0.001, 40)) * tokens
    found = paired_difference(difference, 0 * tokens, tokens, 999, 0)
    assert 0.095 < found.low < found.mean < found.high < 0.105


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(300):
        a, b, tokens = sets(40, seed, effect=0.02)
        found = paired_difference(a, b, tokens, 999, seed)
        covered += found.low <= 0.02 <= found.high
    assert 0.90 <= covered / 300 <= 0.99


def test_pairs_must_be_of_the_same_sequences() -> None:
    a = pd.DataFrame({"sequence": [0, 1], "tokens": [5, 6], "nll": [10.0, 12.0]})
    b = a.assign(nll=[9.0, 11.5])
    assert compare_pair(a, b, 499, 0).mean == pytest.approx(1.5 / 11)
    for changes in ({"tokens": [5, 7]}, {"sequence": [0, 2]}):
        with pytest.raises(ValueError, match="different sequences"):
            compare_pair(a, b.assign(**changes), 499, 0)
    with pytest.raises(ValueError, match="different sequences"):
        compare_pair(a, b[:1], 499, 0)
