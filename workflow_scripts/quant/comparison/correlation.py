"""Spearman's rank correlation, its 95 % interval and its p."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, permutation_test, rankdata

from quant.comparison.numbers import CONFIDENCE, interval, signed


def interval_of(rho: float, n: int) -> tuple[float, float]:
    """Its ends by Bonett and Wright (2000), for |ρ| < 1 and n > 3: atanh ρ ± z·√((1 + ρ²/2)/(n - 3))."""
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


class Correlation(NamedTuple):
    """Spearman's ρ over n pairs, its 95 % interval and its p by permutation."""

    rho: float
    low: float
    high: float
    p: float
    n: int

    def text(self) -> str:
        if not math.isfinite(self.rho):
            return f"not defined ({self.n} methods)"
        return f"{signed(self.rho, 2)} {interval(self.low, self.high, 2)} over {self.n} methods".replace("  ", " ")


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 42) -> Correlation:
    """Spearman's ρ of x and y [n] as a sample, with its interval.

    A perfect order of n values counts as half a swap short of it, so that its interval has a width. p is by all
    permutations where they are few, else by 9,999 of them. Under 4 values there is no interval.
    """
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, math.nan, math.nan, math.nan, n)
    a, b = rankdata(x), rankdata(y)

    def spearman(ranks: np.ndarray, axis: int = -1) -> np.ndarray:
        centred = ranks - ranks.mean(axis, keepdims=True)
        return (centred * (b - b.mean())).sum(axis) / np.sqrt((centred**2).sum(axis) * ((b - b.mean()) ** 2).sum())

    found = permutation_test((a,), spearman, permutation_type="pairings", n_resamples=9999, vectorized=True,
                             rng=np.random.default_rng(seed))  # fmt: skip
    rho, most = float(found.statistic), 1 - 6 / (n * (n**2 - 1))
    if n < 4:
        return Correlation(rho, math.nan, math.nan, float(found.pvalue), n)
    return Correlation(rho, *interval_of(min(max(rho, -most), most), n), float(found.pvalue), n)
